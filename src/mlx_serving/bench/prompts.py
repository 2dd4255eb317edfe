"""Prompts of a wanted length: random words, so that no cache of prefixes helps, and the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from random import Random

from mlx_serving.bench.target import Count

WORDS_PER_TOKEN = 0.75
"""Of English with the tokenizers of large models: what is assumed until a target has told better."""

_WORDS = """
about above after again all also always and another answer any are around ask away back because been before began
being below between both boy but call came can change children city close cold come could country day different does
door down each earth eat end enough even every example eye face family far father feet few find first follow food for
found four from garden girl give good great green group grow had hand hard has have head hear help her here high him
his home house how hundred idea into island keep kind know land large last late learn leave left letter life light
like line list little live long look made make man many may mean men might mile mother mountain move much must name
near need never new next night north not number off often old once one only open or other our out over own page paper
part people picture place plant play point press put question quick rain read ready red right river road room run said
same saw say school sea second see seem sentence set several shall she ship short should show side small snow some
song soon sound spell stand start state still stop story study such summer sun take talk tell than that the their them
then there these they thing think this those though three through time together took town travel tree try turn two
under until up upon us use very voice wait walk want war watch water way we well went were what when where which while
white who why will wind winter with without woman wonder word work world would write year you young
""".split()  # noqa: SIM905  it is read as words
_FILLERS: Sequence[Callable[[int], str]] = (
    lambda tokens: " a" * tokens,  # for most tokenizers a token each
    lambda tokens: "".join(".,;:!?"[index % 6] for index in range(tokens)),  # for those that know no words
)
_TRIES = 12


async def make_prompts(
    count: int, tokens: int, seed: str, *, count_tokens: Count | None, words_per_token: float = WORDS_PER_TOKEN
) -> list[str]:
    """`count` texts of `tokens` tokens each, by the tokenizer that `count_tokens` asks; without one, of as many words
    as `words_per_token` says."""
    random = Random(seed)  # noqa: S311  a load to be repeated, no secret
    words = max(1, round(tokens * words_per_token))
    prompts = [_words(random, words) for _ in range(count)]
    if count_tokens is None:
        return prompts
    return [await _fitted(prompt, tokens, random, count_tokens) for prompt in prompts]


async def _fitted(text: str, tokens: int, random: Random, count_tokens: Count) -> str:
    """`text` longer or shorter, until it has `tokens` tokens or, where no text seems to have, about so many."""
    for _ in range(_TRIES):
        given = await count_tokens(text)
        words = text.count(" ") + 1
        missing, per_word = tokens - given, given / words
        if missing == 0:
            break
        if missing < 0 and words == 1:
            text = text[: max(1, len(text) * tokens // given)]
        elif missing < 0:
            text = " ".join(text.split(" ")[: max(1, words - ceil(-missing / per_word))])
        elif missing < 2 * per_word:
            text = await _closest(tokens, [text + filler(missing) for filler in _FILLERS], count_tokens)
        else:
            text += " " + _words(random, min(int(missing / per_word) - 1, missing))
    return text


async def _closest(tokens: int, texts: Sequence[str], count_tokens: Count) -> str:
    distances = [abs(tokens - await count_tokens(text)) for text in texts]
    return texts[distances.index(min(distances))]


def _words(random: Random, count: int) -> str:
    return " ".join(random.choice(_WORDS) for _ in range(count))
