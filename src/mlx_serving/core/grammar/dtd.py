"""DTDs: what elements a document has, and what each may have in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mlx_serving.errors import GuidanceError

_NAME = r"[A-Za-z_][A-Za-z0-9_.:-]*"
_DOCTYPE = re.compile(rf"\s*<!DOCTYPE\s+({_NAME})\s*\[(.*)\]\s*>\s*\Z", re.S)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_DECLARATION = re.compile(r"""<(\W?\w*)((?:[^<>"']|"[^"]*"|'[^']*')*)>""")
_NAMED = re.compile(rf"\s+({_NAME})\s+(\S.*)", re.S)
_ATTRIBUTE = re.compile(
    rf"""\s*({_NAME})\s+(\([^()]*\)|\w+)\s+(#REQUIRED|#IMPLIED|(?:#FIXED\s+)?(?:"[^"<&]*"|'[^'<&]*'))"""
)
_PIECE = re.compile(rf"\s*({_NAME}|\#PCDATA|[()|,?*+])")
_WORD = re.compile(r"[A-Za-z0-9_.:-]+")
_MAX_DEPTH = 50  # of parentheses

AttributeKind: TypeAlias = Literal["CDATA", "NMTOKEN", "NMTOKENS"]


@dataclass(frozen=True, slots=True)
class Attribute:
    """Its value is one of `values`, if there are any, or as `kind` says."""

    name: str
    required: bool
    kind: AttributeKind = "CDATA"
    values: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """An element, or several parts in order (`,`) or of which one is there (`|`); so often as `times` says: once,
    `?`, `*` or `+`."""

    element: str = ""
    parts: Sequence[Part] = ()
    separator: str = ","
    times: str = ""

    def ends(self, ending: frozenset[str]) -> bool:
        """Whether it can be complete if only these elements can be."""
        if self.times in ("?", "*"):
            return True
        if self.element:
            return self.element in ending
        each = (part.ends(ending) for part in self.parts)
        return any(each) if self.separator == "|" else all(each)


@dataclass(frozen=True, slots=True)
class Text:
    """Text, and between it any of these elements."""

    elements: Sequence[str] = ()


Content: TypeAlias = Part | Text | None
"""None: the element is empty."""


@dataclass(frozen=True, slots=True)
class Dtd:
    root: str
    contents: Mapping[str, Content]
    attributes: Mapping[str, Sequence[Attribute]]


def read_dtd(text: str, parameter: str) -> Dtd:
    """Of `<!ELEMENT …>` and `<!ATTLIST …>`, alone or in `<!DOCTYPE root […]>`; without that the first element is the
    root. Raises `GuidanceError`, which names the `parameter`, for anything else and for what has no document."""
    return _Reader(parameter).read(text)


class _Reader:
    def __init__(self, parameter: str) -> None:
        self._parameter = parameter

    def read(self, text: str) -> Dtd:
        doctype = _DOCTYPE.match(text)
        described: dict[str, str] = {}
        attributes: dict[str, list[Attribute]] = {}
        for kind, name, rest in self._declarations(_COMMENT.sub(" ", doctype[2] if doctype else text)):
            if kind == "!ATTLIST":
                attributes.setdefault(name, []).extend(self._attributes(name, rest))
            elif name in described:
                raise self._error(f"declares <{name}> twice")
            else:
                described[name] = rest.strip()
        root = doctype[1] if doctype else next(iter(described), "")
        self._names = list(described)
        if not root:
            raise self._error("is no DTD: it declares no <!ELEMENT …>")
        contents = {name: self._content(name, rest) for name, rest in described.items()}
        for name in (root, *attributes):
            self._require(name)
        self._require_end(root, contents)
        return Dtd(root, contents, attributes)

    def _declarations(self, text: str) -> Iterator[tuple[str, str, str]]:
        at = 0
        while (rest := text[at:].lstrip()) != "":
            at = len(text) - len(rest)
            match = _DECLARATION.match(text, at)
            if match is None:
                raise self._error(f"is no DTD: {rest[:40]!r} is no declaration")
            named = _NAMED.fullmatch(match[2])
            if match[1] not in ("!ELEMENT", "!ATTLIST") or named is None:
                raise self._error(f"has {match[0][:40]!r}, which is not supported")
            yield match[1], named[1], named[2]
            at = match.end()

    def _attributes(self, element: str, text: str) -> Iterator[Attribute]:
        at = 0
        while text[at:].strip():
            match = _ATTRIBUTE.match(text, at)
            if match is None:
                raise self._error(f"has attributes of <{element}> that cannot be read: {text[at:].strip()[:40]!r}")
            name, kind, default = match.groups()
            at = match.end()
            yield self._attribute(element, name, kind, default)

    def _attribute(self, element: str, name: str, kind: str, default: str) -> Attribute:
        required = default == "#REQUIRED"
        if default.startswith("#FIXED"):
            return Attribute(name, required, values=(default.removeprefix("#FIXED").strip()[1:-1],))
        if kind.startswith("("):
            values = [value.strip() for value in kind[1:-1].split("|")]
            if not all(map(_WORD.fullmatch, values)):
                raise self._error(f"gives the attribute {name} of <{element}> values that cannot be read")
            return Attribute(name, required, values=values)
        match kind:
            case "CDATA" | "NMTOKEN" | "NMTOKENS":
                return Attribute(name, required, kind)
            case _:
                raise self._error(f"gives <{element}> an attribute {name} of type {kind[:40]}, which is not supported")

    def _content(self, name: str, text: str) -> Content:
        if text == "EMPTY":
            return None
        if text == "ANY":
            return Text(self._names)
        pieces = self._pieces(name, text)
        if "#PCDATA" in pieces:
            return self._mixed(name, pieces)
        at, part = self._part(name, pieces, 0, 0)
        if at != len(pieces) or part.element:
            raise self._unreadable(name)
        return part

    def _pieces(self, name: str, text: str) -> list[str]:
        pieces: list[str] = []
        at = 0
        while text[at:].strip():
            match = _PIECE.match(text, at)
            if match is None:
                raise self._unreadable(name)
            pieces.append(match[1])
            at = match.end()
        return pieces

    def _mixed(self, name: str, pieces: Sequence[str]) -> Text:
        """`(#PCDATA)` or `(#PCDATA | a | b)*`."""
        inside = pieces[1 : -1 if pieces[-1] == ")" else -2]
        names = inside[2::2]
        shape = ["(", "#PCDATA", *(piece for each in names for piece in ("|", each)), ")"]
        if list(pieces) != [*shape, *(["*"] if names or pieces[-1] == "*" else [])]:
            raise self._unreadable(name)
        for each in names:
            self._require(each)
        return Text(names)

    def _part(self, name: str, pieces: Sequence[str], at: int, depth: int) -> tuple[int, Part]:
        """What begins with the piece `at`, and where it ends."""
        piece = pieces[at] if at < len(pieces) and depth <= _MAX_DEPTH else ""
        if piece == "(":
            at, parts, separator = self._parts(name, pieces, at + 1, depth + 1)
            part = Part(parts=parts, separator=separator)
        elif re.fullmatch(_NAME, piece):
            self._require(piece)
            at, part = at + 1, Part(piece)
        else:
            raise self._unreadable(name)
        if at < len(pieces) and pieces[at] in ("?", "*", "+"):
            return at + 1, Part(part.element, part.parts, part.separator, pieces[at])
        return at, part

    def _parts(self, name: str, pieces: Sequence[str], at: int, depth: int) -> tuple[int, list[Part], str]:
        parts: list[Part] = []
        separators: set[str] = set()
        following = ""
        while following != ")":
            at, part = self._part(name, pieces, at, depth)
            parts.append(part)
            following = pieces[at] if at < len(pieces) else ""
            at += 1
            if following not in ("|", ",", ")"):
                raise self._unreadable(name)
            separators.add(following)
        separators.discard(")")
        if len(separators) > 1:
            raise self._unreadable(name)
        return at, parts, separators.pop() if separators else ","

    def _require(self, name: str) -> None:
        if name not in self._names:
            raise self._error(f"does not declare <{name[:40]}>")

    def _require_end(self, root: str, contents: Mapping[str, Content]) -> None:
        """Round by round, from elements that need no others to those that need what was found to end."""
        ending: frozenset[str] = frozenset()
        while True:
            found = [name for name, each in contents.items() if not isinstance(each, Part) or each.ends(ending)]
            if len(found) == len(ending):
                break
            ending = frozenset(found)
        if root not in ending:
            raise self._error(f"has no document: <{root}> leads back to itself without an end")

    def _unreadable(self, name: str) -> GuidanceError:
        return self._error(f"says of <{name}> what cannot be read; (#PCDATA), (a, b?), (a | b)* are examples")

    def _error(self, what: str) -> GuidanceError:
        return GuidanceError(f"{self._parameter} {what}", field=self._parameter)
