"""Documents of a DTD, tried with llguidance itself and read by Python's parser."""

from __future__ import annotations

import random
from xml.etree import ElementTree

import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from mlx_serving.core.grammar.xml_grammar import xml_grammar
from mlx_serving.errors import GuidanceError

NOTE = """
<!DOCTYPE note [
  <!-- what people leave on tables -->
  <!ELEMENT note (to, (from | anonymous), body?, mark*)>
  <!ELEMENT to (#PCDATA)>
  <!ELEMENT from (#PCDATA)>
  <!ELEMENT anonymous EMPTY>
  <!ELEMENT body (#PCDATA | b)*>
  <!ELEMENT b ANY>
  <!ELEMENT mark EMPTY>
  <!ATTLIST note
     lang (en|de) #REQUIRED
     title CDATA "none"
     version CDATA #FIXED '1 "a"'>
  <!ATTLIST mark id NMTOKEN #REQUIRED tags NMTOKENS #IMPLIED>
]>
"""
TREE = "<!ELEMENT tree (leaf | (tree, tree))> <!ELEMENT leaf EMPTY>"


def matcher(dtd: str) -> LLMatcher:
    made = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(xml_grammar(dtd, "schema")))
    assert not made.is_error(), made.get_error()
    return made


def fits(dtd: str, text: str) -> bool:
    tokens = list(text.encode())
    tried = matcher(dtd)
    return tried.try_consume_tokens(tokens) == len(tokens) and tried.is_accepting()


def drawn(dtd: str, dice: random.Random) -> str | None:
    """A document of random bytes, as far as the grammar allows; None for one that does not end soon."""
    tried, text = matcher(dtd), bytearray()
    mask = allocate_token_bitmask(1, 256 + 1)
    while len(text) < 4000 and not (tried.is_accepting() and tried.is_stopped()):
        fill_next_token_bitmask(tried, mask)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        choices = [int(each) for each in allowed if each < 256]
        # Markup is more likely than in a fair draw, so that texts come to their ends.
        marks = [each for each in choices if each in b"<>/&"]
        byte = dice.choice(marks if marks and dice.random() < 0.3 else choices)
        assert tried.consume_token(byte)
        text.append(byte)
    return text.decode() if tried.is_accepting() else None


@pytest.mark.parametrize(
    "text",
    [
        '<note lang="en"><to>Ann</to><from></from></note>',
        '<note lang="de" title="a &amp; b" version="1 &quot;a&quot;">\n  <to>A&lt;B</to>\n  <anonymous/>\n'
        '  <body>so <b>be<b/>it<mark id="x"/></b> é🙈</body>\n  <mark id="a.1" tags="b c"/>\n</note>'.replace(
            "<b/>", ""
        ),
    ],
)
def test_documents_of_a_dtd_fit_and_parse(text: str) -> None:
    assert fits(NOTE, text)
    assert ElementTree.fromstring(text).tag == "note"


@pytest.mark.parametrize(
    "text",
    [
        "<note><to></to><from></from></note>",
        '<note lang="fr"><to></to><from></from></note>',
        '<note lang="en"><from></from><to></to></note>',
        '<note lang="en"><to></to><from></from><anonymous/></note>',
        '<note lang="en"><to>a & b</to><from></from></note>',
        '<note lang="en"><to>\x85</to><from></from></note>',
        '<note lang="en"><to></note></to>',
        "<to>Ann</to>",
        "Here it is: ",
    ],
)
def test_others_do_not_fit(text: str) -> None:
    assert not fits(NOTE, text)


@pytest.mark.parametrize("dtd", [NOTE, TREE, '<!ELEMENT a (#PCDATA)*><!ATTLIST a x CDATA "1">'])
def test_whatever_is_drawn_parses(dtd: str) -> None:
    dice = random.Random(1)
    documents = [document for _ in range(30) if (document := drawn(dtd, dice)) is not None]
    assert len(documents) > 5
    for document in documents:
        ElementTree.fromstring(document)


def test_without_a_doctype_the_first_element_is_the_root() -> None:
    assert fits(TREE, "<tree><tree><leaf/></tree><tree><leaf/></tree></tree>")
    assert not fits(TREE, "<leaf/>")


@pytest.mark.parametrize(
    ("dtd", "words"),
    [
        ("", "no DTD"),
        ("<a/>", "not supported"),
        ("just text", "no declaration"),
        ("<!ELEMENT a EMPTY> x", "no declaration"),
        ("<!ENTITY a 'b'>", "not supported"),
        ("<!ELEMENT a>", "not supported"),
        ("<!ELEMENT a EMPTY><!ELEMENT a EMPTY>", "twice"),
        ("<!ELEMENT a (b)>", "does not declare <b>"),
        ("<!ELEMENT a (#PCDATA | b)*>", "does not declare <b>"),
        ("<!ELEMENT a EMPTY><!ATTLIST b x CDATA #IMPLIED>", "does not declare <b>"),
        ("<!DOCTYPE b [<!ELEMENT a EMPTY>]>", "does not declare <b>"),
        ("<!ELEMENT a EMPTY><!ATTLIST a x ID #IMPLIED>", "type ID"),
        ("<!ELEMENT a EMPTY><!ATTLIST a x CDATA>", "cannot be read"),
        ("<!ELEMENT a EMPTY><!ATTLIST a x (b|) #IMPLIED>", "cannot be read"),
        ("<!ELEMENT a (a)>", "without an end"),
        ("<!ELEMENT a (b | (b, a))><!ELEMENT b (a)+>", "without an end"),
        ("<!ELEMENT a (b, a | b)>", "does not declare"),
        ("<!ELEMENT a (a, a | a)>", "cannot be read"),
        ("<!ELEMENT a (a>", "cannot be read"),
        ("<!ELEMENT a ()>", "cannot be read"),
        ("<!ELEMENT a a>", "cannot be read"),
        ("<!ELEMENT a (a))>", "cannot be read"),
        ("<!ELEMENT a %b;>", "cannot be read"),
        ("<!ELEMENT a (#PCDATA | a)>", "cannot be read"),
        ("<!ELEMENT a " + "(" * 60 + "a" + ")" * 60 + ">", "cannot be read"),
    ],
)
def test_what_is_no_dtd_is_refused_and_said(dtd: str, words: str) -> None:
    with pytest.raises(GuidanceError, match=words) as refused:
        xml_grammar(dtd, "guidance.schema")
    assert refused.value.field == "guidance.schema"
    assert refused.value.message.startswith("guidance.schema ")
