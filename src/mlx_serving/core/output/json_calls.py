"""Calls that are JSON, and arguments that are, read from a text as it comes."""

from __future__ import annotations

from mlx_serving.core.output.json_stream import JsonValue
from mlx_serving.core.output.parsed_output import OutputSink
from mlx_serving.core.output.text_scanner import Reading, TextScanner
from mlx_serving.core.output.tool_arguments import Schemas, read_json

_NAME_KEYS = frozenset({"name", "function"})
_ARGUMENT_KEYS = frozenset({"arguments", "parameters"})
_BARE_KEYS = _NAME_KEYS | _ARGUMENT_KEYS | {"type", "id"}


def read_json_calls(text: TextScanner, sink: OutputSink) -> Reading[None]:
    """An object that is a call, or a list of those, as far as it can be read."""
    next_one = yield from text.skip_space()
    if next_one == "{":
        yield from read_json_call(text, sink)
        return
    if not (yield from text.accept("[")):
        return
    while (yield from text.skip_space()) == "{":
        if not (yield from read_json_call(text, sink)):
            return
        yield from text.skip_space()
        if not (yield from text.accept(",")):
            break
    yield from text.accept("]")


def read_json_call(text: TextScanner, sink: OutputSink, offered: Schemas | None = None) -> Reading[bool]:
    """An object that is a call, which comes next; whether it could be read to its end. With `offered` it counts only
    with the name of one of these and with arguments, and nothing but what calls have."""
    yield from text.accept("{")
    name: str | None = None
    held: str | None = None
    begun = False
    while (next_one := (yield from text.skip_space())) != "}":
        if next_one == ",":
            yield from text.accept(",")
            continue
        key = yield from _string(text)
        yield from text.skip_space()
        if key is None or not (yield from text.accept(":")):
            return False
        if offered is not None and key not in _BARE_KEYS:
            return False
        next_one = yield from text.skip_space()
        if key in _NAME_KEYS and name is None and next_one == '"':
            name = yield from _string(text)
            if offered is not None and name not in offered:
                return False
        elif key in _ARGUMENT_KEYS and name is not None and not begun:
            begun = yield from stream_arguments(text, sink, name)
            if not begun:
                return False
        else:
            value = yield from _value(text)
            if value is None:
                return False
            held = value if key in _ARGUMENT_KEYS else held
    yield from text.accept("}")
    if begun:
        return True
    if name is None or (held is None and offered is not None):
        return False
    arguments = _arguments_of(held or "{}")
    if arguments is None:
        return False
    sink.begin_call(name)
    sink.argue(arguments)
    sink.end_call()
    return True


def stream_arguments(
    text: TextScanner, sink: OutputSink, name: str, model_id: str | None = None, *, begun_with: str = ""
) -> Reading[bool]:
    """The value that comes next, as the arguments of a call; whether it could be read to its end."""
    if begun_with or (yield from text.peek()) == "{":
        sink.begin_call(name, model_id)
        value = JsonValue(sink.argue)
        value.take(begun_with)
        yield from text.take(value.take)
        sink.end_call()
        return not value.is_broken
    held = yield from _value(text)
    arguments = None if held is None else _arguments_of(held)
    if arguments is None:
        return False
    sink.begin_call(name, model_id)
    sink.argue(arguments)
    sink.end_call()
    return True


def _arguments_of(held: str) -> str | None:
    """The JSON text of an object: given as such, as a string that has it, or as null for an empty one."""
    try:
        value = read_json(held)
        if isinstance(value, str):
            held, value = value, read_json(value)
    except ValueError:
        return None
    if value is None:
        return "{}"
    return held if isinstance(value, dict) else None


def _string(text: TextScanner) -> Reading[str | None]:
    """The string that comes next, or None for anything else."""
    if (yield from text.peek()) != '"':
        return None
    held = yield from _value(text)
    try:
        value = read_json(held or "")
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _value(text: TextScanner) -> Reading[str | None]:
    """The text of the value that comes next; None if it is none."""
    held: list[str] = []
    value = JsonValue(held.append)
    yield from text.take(value.take)
    return None if value.is_broken else "".join(held)
