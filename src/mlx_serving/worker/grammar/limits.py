"""What a grammar may cost."""

from __future__ import annotations

from llguidance import LLParserLimits


def grammar_limits() -> LLParserLimits:
    """For compiling a few hundred milliseconds, for a step some ten, and some ten megabytes of states."""
    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        max_lexer_states=20_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )
