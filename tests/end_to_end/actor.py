"""A model that thinks, calls a tool and reports its result, always in the same words.

What it does depends on the conversation: with tools it calls one, after a result it reports, else it talks; it thinks
before if the template is told to let it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

TEMPLATE = (
    "{# It thinks between <think> and </think>. #}"
    "{% if tools %}{{ tools | tojson }} Write <tool_call>.\n{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message['tool_calls'] or () %}{{ call | tojson }}{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if messages[-1]['role'] == 'tool' %}{{ '<|report|>' }}"
    "{% elif tools and enable_thinking %}{{ '<|think and call|>' }}"
    "{% elif tools %}{{ '<|call|>' }}"
    "{% elif enable_thinking %}{{ '<|think|>' }}"
    "{% else %}{{ '<|talk|>' }}"
    "{% endif %}{% endif %}"
)

ROLES: Mapping[str, Sequence[str]] = {
    "<|talk|>": ("Hello ", "there, ", "my ", "friend."),
    "<|think|>": ("<think>A greeting, ", "I greet ", "back.</think>\n\n", "Good ", "day."),
    "<|call|>": (
        "Let me look.\n",
        '<tool_call>\n{"name": "look_up", "argum',
        'ents": {"wh',
        'at": "ca',
        'ts"}}\n</tool_call>',
    ),
    "<|think and call|>": (
        "<think>I must ",
        "look it up.</think>\n\n",
        "One moment.\n",
        '<tool_call>\n{"name": "look_up", ',
        '"arguments": {"what',
        '": "dogs',
        '"}}\n</tool_call>',
    ),
    "<|report|>": ("They ", "sleep ", "a lot."),
}
TALK = "Hello there, my friend."
REPORT = "They sleep a lot."


def make(directory: Path) -> Path:
    from ..tiny_models import make_actor  # imports MLX, which only making the model needs

    return make_actor(directory, ROLES, chat_template=TEMPLATE)
