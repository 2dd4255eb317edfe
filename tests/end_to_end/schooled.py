"""The embedded model as an operator teaches it tools and reasoning, and the keys of its clients.

Its answers are greedy, so that they are the same every time; calls are forced, because so small a model makes none of
its own accord.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel

from mlx_serving.config.api_keys import hash_key
from mlx_serving.config.model_names import EMBEDDED_MODEL

MODEL = EMBEDDED_MODEL
PARIS: Any = [{"role": "user", "content": "What is the capital of France?"}]
CATS: Any = [{"role": "user", "content": "How long do cats sleep?"}]
LONG: Any = {"max_tokens": 5000, "extra_body": {"ignore_eos": True}}
"""Minutes of work, unless somebody ends it."""

KEYS = {
    "api_key": "key-of-the-clients",
    "stranger": "key-that-may-use-nothing-that-is-served-here",
    "hasty": "key-that-may-ask-once-in-a-minute-and-no-more",
    "single": "key-that-may-ask-one-thing-at-a-time-only",
}
AT_ONCE = 6
"""Requests that run or wait; one more is too many."""

TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %} {{ tool.function.name }}{% endfor %}<|im_end|>\n"
    "{% endif %}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + (message.content or '') }}"
    "{% for call in message.tool_calls or () %}{{ call.function | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking %}{{ '<think>\n' }}{% endif %}{% endif %}"
)


def config() -> dict[str, object]:
    limits = {
        "stranger": {"models": ["nothing"]},
        "hasty": {"requests_per_minute": 1},
        "single": {"max_concurrent": 1},
    }
    keys = [{"name": name, "hash": hash_key(KEYS[name]), **limit} for name, limit in limits.items()]
    served = {
        "model": MODEL,
        "tool_parser": "json_tools",
        "reasoning_parser": "think",
        "profile": {"chat_template": TEMPLATE, "temperature": 0, "max_tokens": 40},
    }
    return {
        "models": {"served": [served]},
        "keys": {"inline": json.dumps({"keys": keys})},
        "scheduler": {"max_num_seqs": 4, "max_queue": AT_ONCE - 4},
    }


class Verdict(BaseModel):
    """An answer of few tokens."""

    word: Literal["good", "bad"]


class City(BaseModel):
    capital: Literal["Paris", "Berlin"]
    on_the_sea: bool


LOOK_UP: dict[str, Any] = {
    "type": "object",
    "properties": {"what": {"type": "string", "enum": ["cats", "dogs"]}},
    "required": ["what"],
    "additionalProperties": False,
}
