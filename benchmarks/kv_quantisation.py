"""KV caches in 8 and in 4 bits against caches as they are computed: memory, speed, and what it does to the answers.

    python benchmarks/kv_quantisation.py                       # the embedded model, contexts of 64 and 512 tokens
    python benchmarks/kv_quantisation.py --model tiny          # a random two-layer model, to see that the script runs
    python benchmarks/kv_quantisation.py --contexts 1024 8192 --sequences 1 8 --json

`bytes a token` in the caches of all layers, and how many times as many tokens fit into the same memory.
`decode`: tokens a second of the worker's own step at each context and number of sequences, as a part of what caches as
computed give; a round runs all forms, in turns; the figure is the median of the rounds' ratios.
`text`: a text of English is read token by token. `same_top`: how often the likeliest next token is the same;
`logprob_change`: the mean change of the log-probability of the text's own tokens, without its sign; `perplexity` of the
text, as a part of that with caches as computed (more is worse).
`greedy`: how many of the first tokens of greedy answers to a few prompts are the same, of how many.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from mlx_serving.catalog.prepare import prepare
from mlx_serving.catalog.reference import parse_reference
from mlx_serving.catalog.store import cache_directory
from mlx_serving.core.kv_form import KvForm
from mlx_serving.machine import blas

TEXT = " ".join(
    (
        "The lighthouse stood at the end of a narrow spit of land, where the river meets the sea. Every",
        "evening the keeper climbed its stairs, cleaned the lamp, and wrote down the weather: the wind, the",
        "height of the waves, the ships that passed. In winter the storms were so strong that he could not",
        "leave for weeks. Then he read the books that earlier keepers had left behind, most of them about the",
        "stars, and learned to find his way among them by name. When the light was replaced by an electric",
        "one, the town asked him to stay, because somebody had to tell the children why it had been built in",
        "that place.",
    )
)
PROMPTS = ("What is the capital of France?", "Count from one to ten.", "Write a short poem about the sea.")
WARM_UP_STEPS = 3


class Model:
    def __init__(self, directory: Path, group_size: int) -> None:
        from mlx_lm.utils import load_model, load_tokenizer

        from mlx_serving.worker.loading.capabilities import kv_bytes_and_logits, packed_kv_bytes, probe

        self.network: Any = load_model(directory)[0]
        self.tokenizer = load_tokenizer(directory, {"trust_remote_code": False})
        self.capabilities = probe(self.network)
        self.forms: dict[str, KvForm | None] = {"as computed": None}
        self.forms |= {f"{bits} bits": KvForm(bits, group_size) for bits in (8, 4)}
        plain, self.vocabulary = kv_bytes_and_logits(self.network)
        self.token_bytes = {
            name: plain if form is None else packed_kv_bytes(self.network, form, self.capabilities, str(directory))
            for name, form in self.forms.items()
        }

    def rate(self, form: KvForm | None, context: int, sequences: int, tokens: int) -> float:
        """Tokens a second."""
        from mlx_serving.core.generation import SamplingParams
        from mlx_serving.core.sampling_defaults import SamplingDefaults, resolve
        from mlx_serving.core.schedule.scheduling import PrefillChunk
        from mlx_serving.worker.job import Job
        from mlx_serving.worker.model_runner import ModelRunner

        runner = ModelRunner(self.network, self.capabilities, kv=form)
        greedy = resolve(SamplingParams(temperature=0.0), {}, SamplingDefaults())
        names = [str(number) for number in range(sequences)]
        for number, name in enumerate(names):
            prompt = [(7 * number + 3 * index + 1) % min(250, self.vocabulary) for index in range(context + number)]
            runner.open(Job(name, prompt, greedy, number))
            runner.admit(name)
            runner.run((), [PrefillChunk(name, 0, len(prompt), True)], ())
        for _ in range(WARM_UP_STEPS):
            runner.run(names, (), ())
        began = time.perf_counter()
        for _ in range(tokens):
            runner.run(names, (), ())
        rate = sequences * tokens / (time.perf_counter() - began)
        runner.close()
        return rate

    def logprobs(self, form: KvForm | None, token_ids: Sequence[int]) -> tuple[Any, Any]:
        """Of each next token of a text: the likeliest one, [tokens], and its own log-probability, [tokens]."""
        import mlx.core as mx

        from mlx_serving.worker.packed_kv import make_caches

        caches = make_caches(self.network, form)
        logits = self.network(mx.array([list(token_ids[:-1])]), cache=caches)[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        own = mx.take_along_axis(logprobs, mx.array(list(token_ids[1:]))[:, None], axis=-1)[:, 0]
        return mx.argmax(logits, axis=-1), own

    def answer(self, form: KvForm | None, token_ids: Sequence[int], count: int) -> list[int]:
        import mlx.core as mx

        from mlx_serving.worker.packed_kv import make_caches

        caches = make_caches(self.network, form)
        fed, tokens = list(token_ids), list[int]()
        for _ in range(count):
            fed = [cast(int, mx.argmax(self.network(mx.array([fed]), cache=caches)[0, -1]).item())]
            tokens += fed
        return tokens


def decoding(model: Model, contexts: Sequence[int], sizes: Sequence[int], tokens: int, rounds: int) -> list[Any]:
    results: list[dict[str, object]] = []
    for context in contexts:
        for size in sizes:
            runs: list[dict[str, float]] = []
            for number in range(rounds + 1):
                names = list(model.forms)
                turn = number % len(names)
                rates = {
                    name: model.rate(model.forms[name], context, size, tokens) for name in names[turn:] + names[:turn]
                }
                if number > 0:  # the first round warms up
                    runs.append(rates)
            figures: dict[str, object] = {"context": context, "sequences": size}
            figures["tokens_per_second"] = round(statistics.median(run["as computed"] for run in runs), 1)
            for name in list(model.forms)[1:]:
                figures[name] = round(statistics.median(run[name] / run["as computed"] for run in runs), 3)
            results.append(figures)
            print(json.dumps(figures), file=sys.stderr)
    return results


def _number(value: Any) -> float:
    """Of an array of one."""
    return float(value.item())


def reading(model: Model, tokens: int) -> dict[str, dict[str, float]]:
    import mlx.core as mx

    token_ids = cast("list[int]", cast(Any, model.tokenizer).encode(TEXT))[:tokens]
    top, own = model.logprobs(None, token_ids)
    results: dict[str, dict[str, float]] = {}
    for name, form in list(model.forms.items())[1:]:
        other_top, other = model.logprobs(form, token_ids)
        results[name] = {
            "same_top": round(_number(mx.mean(top == other_top)), 4),
            "logprob_change": round(_number(mx.mean(mx.abs(other - own))), 5),
            "perplexity": round(_number(mx.exp(mx.mean(own) - mx.mean(other))), 4),
        }
    return results


def answering(model: Model, count: int) -> dict[str, list[int]]:
    results: dict[str, list[int]] = {}
    prompts = [_templated(model.tokenizer, prompt) for prompt in PROMPTS]
    expected = [model.answer(None, prompt, count) for prompt in prompts]
    for name, form in list(model.forms.items())[1:]:
        answers = [model.answer(form, prompt, count) for prompt in prompts]
        results[name] = [_agreeing(answer, told) for answer, told in zip(answers, expected, strict=True)]
    return results


def _templated(tokenizer: Any, prompt: str) -> list[int]:
    messages = [{"role": "user", "content": prompt}]
    if not tokenizer.has_chat_template:
        return tokenizer.encode(prompt)
    return tokenizer.encode(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), add_special_tokens=False
    )


def _agreeing(answer: Sequence[int], expected: Sequence[int]) -> int:
    pairs = list(zip(answer, expected, strict=True))
    return next((index for index, (one, other) in enumerate(pairs) if one != other), len(pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="what the catalog knows, or `tiny`")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--contexts", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=16, help="decoded in each run, and of each greedy answer")
    parser.add_argument("--text-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    blas.settle(cache_directory() / "blas")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.model == "tiny":
            directory = Path(folder) / "tiny"
            command = "from pathlib import Path; import sys; from tests.tiny_models import make_llama as make; "
            command += "make(Path(sys.argv[1]), head_dim=64, context_length=32768)"
            subprocess.run([sys.executable, "-c", command, str(directory)], check=True)
        else:
            directory = prepare(parse_reference(arguments.model), lambda step: None)
        model = Model(directory, arguments.group_size)
        plain = model.token_bytes["as computed"]
        results = {
            "bytes_a_token": model.token_bytes,
            "times_as_many": {name: round(plain / size, 2) for name, size in model.token_bytes.items()},
            "text": reading(model, arguments.text_tokens),
            "greedy": {"tokens": arguments.tokens, "same": answering(model, arguments.tokens)},
            "decode": decoding(model, arguments.contexts, arguments.sequences, arguments.tokens, arguments.rounds),
        }
    print(json.dumps(results) if arguments.json else json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
