"""JSON schemas as llguidance takes them, with bounds on what a schema may cost, in making and at each token."""

import json
from typing import Any

import llguidance

from workers.bounded.tasks import Compile, TaskResult

LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=50_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)
"""About 4 ms of a token at most, and 40 MB of an answer."""


class UnsupportedSchemaError(Exception):
    """No answer can be held to this schema; the message says why."""


def compile(schema: dict[str, Any], tokenizer: llguidance.LLTokenizer) -> llguidance.LLMatcher:
    """Raises ``UnsupportedSchemaError``."""
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema, allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise UnsupportedSchemaError(str(error)) from error
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise UnsupportedSchemaError(matcher.get_error())
    return matcher


def attempt(task: Compile) -> TaskResult:
    """Make the grammar over single bytes instead of a model's tokens, and ask it for the first."""
    try:
        matcher = compile(task["schema"], llguidance.LLTokenizer("byte"))
    except UnsupportedSchemaError as error:
        return {"refused": str(error)}
    matcher.compute_bitmask()
    if matcher.is_error():
        return {"refused": f"nothing fits it ({matcher.stop_reason()})"}
    return {}
