"""What form the answer to a prompt has: what it must be, how it is taken apart, when its reasoning ends.

All of it depends on how the prompt ends: in the middle of reasoning, or before any.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from mlx_serving.core.generation import Structure
from mlx_serving.core.grammar.thought_grammar import Thinking, form_lead, form_rule, thinking_of, thought_lead
from mlx_serving.core.grammar.tool_grammar import BARE, tool_grammar
from mlx_serving.core.output.output_parser import FormFormat, MarkedFormat, OutputFormat, OutputParser
from mlx_serving.core.output.tool_arguments import schemas_of
from mlx_serving.core.reasoning_budget import ThoughtBudget
from mlx_serving.wire.methods import GenerateParams
from mlx_serving.worker.grammar.structure import Form
from mlx_serving.worker.loading.loaded_model import LoadedModel
from mlx_serving.worker.requests import is_forced

_PROMPT_TAIL = 32  # tokens in which the opening of reasoning stands, if there is any


def form_of(
    params: GenerateParams, structure: Structure | None, model: LoadedModel, token_ids: Sequence[int]
) -> Form | None:
    """The form of the answer to this prompt, if it must have one: of what is said behind the reasoning, where that is
    told apart, else of all; or a call of a tool. Runs on the tokenizer thread."""
    if is_forced(params):
        return Form(Structure("grammar", _calls(params, model, token_ids), "tool_choice"))
    if structure is None or not params.parse_output:
        return None if structure is None else Form(structure)
    token_of = model.structures.token_of
    if _may_call_instead(params, model):
        form = form_rule(model.output.format(tools=True), token_of)
        return Form(structure, _calls(params, model, token_ids, form), calls=_calls(params, model, token_ids))
    output = model.output.format(tools=False)
    return Form(structure, form_lead(output, _thinking(model, token_ids, output), token_of))


def parser_of(params: GenerateParams, model: LoadedModel, token_ids: Sequence[int], seed: int) -> OutputParser | None:
    """What takes the answer to this prompt apart, if that is asked for. The ids of its calls follow from the prompt and
    the seed. Runs on the tokenizer thread."""
    if not params.parse_output:
        return None
    calls = bool(params.tools) and params.tool_choice != "none"
    output = model.output.format(tools=calls)
    if not output.think_starts and not calls:
        return None
    if _has_json_form(params) and not _may_call_instead(params, model):
        output = model.output.format(tools=False)
    if isinstance(output, MarkedFormat) and (_has_json_form(params) or (params.guidance is not None and not calls)):
        output = FormFormat(output)
    digest = hashlib.sha256(array("q", token_ids).tobytes()).hexdigest()
    return OutputParser(
        output,
        f"{digest}:{seed}",
        tools=params.tools,
        thinking=_thinking(model, token_ids, output) is Thinking.OPEN,
        parallel=params.parallel_tool_calls,
    )


def thought_of(params: GenerateParams, model: LoadedModel, token_ids: Sequence[int]) -> ThoughtBudget | None:
    """What ends the reasoning of the answer to this prompt. There is none where the model does not think, nor where
    all of the answer has a form. Runs on the tokenizer thread."""
    output = model.output.format(tools=False)
    is_form = params.guidance is not None and not params.parse_output
    if params.reasoning_budget is None or not output.think_ends or is_form:
        return None

    def tokens(marker: str) -> list[int]:
        return model.tokenizer.encode(marker, add_special_tokens=False)

    end = tokens(output.think_ends[0])
    thinking = _thinking(model, token_ids, output) is Thinking.OPEN
    answer = tokens(output.answer_start)
    return ThoughtBudget(
        params.reasoning_budget,
        tokens(output.think_starts[0]),
        end,
        [*end, *answer],
        thinking=thinking,
        end_text=output.think_ends[0],
        decode=model.decode_marked if len(end) > 1 else None,
    )


def _may_call_instead(params: GenerateParams, model: LoadedModel) -> bool:
    """Whether an answer that is no call must have a form, which can be told from one."""
    is_offered = bool(params.tools) and params.tool_choice != "none"
    return is_offered and _has_json_form(params) and model.output.tool_parser not in BARE


def _has_json_form(params: GenerateParams) -> bool:
    return params.guidance is not None and params.guidance.mode in ("json_schema", "json_object")


def _calls(params: GenerateParams, model: LoadedModel, token_ids: Sequence[int], form: str | None = None) -> str:
    """The grammar of an answer that is calls, or that `form`."""
    output = model.output.format(tools=True)
    schemas = schemas_of(params.tools)
    if params.named_tool is not None:
        schemas = {params.named_tool: schemas[params.named_tool]}
    token_of = model.structures.token_of
    return tool_grammar(
        model.output.tool_parser or "",
        schemas,
        token_of,
        parallel=params.parallel_tool_calls and params.named_tool is None,
        lead=thought_lead(output, _thinking(model, token_ids, output), token_of),
        form=form,
    )


def _thinking(model: LoadedModel, token_ids: Sequence[int], output: OutputFormat) -> Thinking:
    tail = model.tokenizer.decode(token_ids[-_PROMPT_TAIL:], skip_special_tokens=False)
    return thinking_of(tail, output)
