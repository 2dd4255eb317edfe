"""Parameters of OpenAI's and vLLM's protocols that this server does not act on.

Each is refused by name unless its value is null or one of those listed here, which ask for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

NeutralValues: TypeAlias = Mapping[str, tuple[object, ...]]

_BOTH: NeutralValues = {
    # OpenAI
    "moderation": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
    "store": (False,),
    # vLLM
    "add_special_tokens": (),
    "early_stopping": (False,),
    "echo": (False,),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": (),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "mm_processor_kwargs": ({},),
    "priority": (0,),
    "prompt_logprobs": (),
    "request_id": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    # mlx-lm's server
    "adapters": (),
    "frequency_context_size": (),
    "presence_context_size": (),
}

CHAT: NeutralValues = {
    **_BOTH,
    "add_generation_prompt": (True,),
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "role_mapping": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}

COMPLETION: NeutralValues = {**_BOTH, "suffix": ("",)}

ANTHROPIC: NeutralValues = {
    "billing_policy": (),
    "compaction": (),
    "container": (),
    "context_management": (),
    "diagnostics": (),
    "fallback_credit_token": (),
    "fallbacks": ([],),
    "inference_geo": (),
    "mcp_servers": ([],),
    "output_format": (),
    "speed": ("standard",),
    "thread": (),
    "user_profile_id": (),
    "workspace_id": (),
}

RESPONSES: NeutralValues = {
    "access_programs": (),
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "moderation": (),
    "prompt": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": ("in_memory",),
}

STREAM_OPTIONS: NeutralValues = {"continuous_usage_stats": (False,), "include_obfuscation": (False,)}

# What an assistant's message of an earlier answer carries when a client sends it back.
MESSAGE: NeutralValues = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
}


# What to do instead, where that is not plain.
INSTEAD: Mapping[str, str] = {
    "adapters": "an adapter is served under a name of its own (models.served[].adapter), which is what model should "
    "say",
}


def is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    """Whether a value asks for nothing. `1` and `true` are different values in JSON."""
    return value is None or any(type(value) is type(each) and value == each for each in neutral)
