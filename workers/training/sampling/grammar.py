"""The JSON schema that a job holds its answers to, where it has one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from workers.bounded import client
from workers.bounded.grammars import UnsupportedSchemaError
from workers.bounded.tasks import Compile
from workers.errors import RunError
from workers.modeling.policy import Policy
from workers.rollouts.grammar import Grammar, Grammars, UnconstrainableError, everything
from workers.training.data.batch import Allowed, TrainingSample

PARAM = "response_format"


def load_grammar(schema: dict[str, Any] | None, policy: Policy) -> Grammar | None:
    """The grammar of ``schema`` for the policy's tokens. Raises ``RunError``."""
    if schema is None:
        return None
    # What a schema takes is tried where that can do no harm, as it was when the job was created, perhaps elsewhere.
    (tried,) = client.run([Compile(kind="compile", schema=schema)])
    try:
        if "refused" in tried:
            raise UnsupportedSchemaError(tried["refused"])
        return Grammars(policy.tokenizer, policy.vocabulary_size, policy.stop_ids).of(schema)
    except UnsupportedSchemaError as error:
        raise RunError("invalid_json_schema", f"This JSON schema is not supported: {error}.", param=PARAM) from error
    except UnconstrainableError as error:
        raise RunError("invalid_model", str(error), param=PARAM) from error


def allowed_by(grammar: Grammar | None) -> Callable[[Sequence[TrainingSample]], Allowed] | None:
    """What says what the grammar allowed in the place of the tokens of samples, one after the other."""
    if grammar is None:
        return None

    def allowed(samples: Sequence[TrainingSample]) -> Allowed:
        masks = [grammar.masks(sample.prompt_ids, sample.rollout.token_ids) for sample in samples]
        return Allowed.of(torch.cat([everything(0, grammar.vocabulary_size), *masks]))

    return allowed


def anything(grammar: Grammar | None) -> Callable[[Sequence[TrainingSample]], Allowed] | None:
    """The same for samples that were not sampled, which may say anything."""
    if grammar is None:
        return None
    size = grammar.vocabulary_size
    return lambda samples: Allowed.of(everything(sum(len(each.rollout.token_ids) for each in samples), size))
