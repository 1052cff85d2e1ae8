"""What vLLM's engine core says of one request, gathered as the arrays it comes in.

n tokens of an answer, K most likely tokens.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workers.rollouts.engine import NonFiniteLogitsError, Rollout
from workers.rollouts.grammar import GrammarFailedError
from workers.rollouts.top_log_probs import TopLogProbs


@dataclass
class PendingRollout:
    """One request's outputs while they come in."""

    held: bool = False
    """Whether it is held to a grammar."""
    token_ids: list[int] = field(default_factory=list)
    ids: list[NDArray[np.int32]] = field(default_factory=list)
    """``[1, 1 + K]`` per step, the sampled token first."""
    log_probs: list[NDArray[np.float32]] = field(default_factory=list)
    """``[1, 1 + K]`` per step."""
    prompt_log_probs: list[Tensor] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, output: Any) -> None:
        """Take an ``EngineCoreOutput``. Raises ``GrammarFailedError`` or ``RuntimeError`` where vLLM gave it up."""
        self.token_ids.extend(output.new_token_ids)
        if output.new_logprobs is not None:
            self.ids.append(output.new_logprobs.logprob_token_ids)
            self.log_probs.append(output.new_logprobs.logprobs)
        if output.new_prompt_logprobs_tensors is not None:
            self.prompt_log_probs.append(output.new_prompt_logprobs_tensors.logprobs[:, 0])
        if output.finish_reason is not None:
            self.finish_reason = str(output.finish_reason)
            if self.held and self.finish_reason == "error":
                raise GrammarFailedError("The answer could not be held to the JSON schema. Make it simpler.")
            if self.finish_reason not in ("stop", "length"):
                raise RuntimeError(f"a request ended with {self.finish_reason!r}")

    def scores(self) -> list[float]:
        """The log-probabilities of the prompt's tokens from the second on."""
        return [value for part in self.prompt_log_probs for value in part.tolist()]

    def rollout(self, version: int, *, top: bool) -> Rollout:
        """The finished answer, with its most likely tokens where ``top``. Raises ``NonFiniteLogitsError``."""
        ids, log_probs = np.concatenate(self.ids), np.concatenate(self.log_probs)  # [n, 1 + K]
        if not np.isfinite(log_probs[:, 0]).all():
            raise NonFiniteLogitsError("The model's logits are NaN or infinite.")
        return Rollout(
            self.token_ids,
            log_probs[:, 0].tolist(),
            "stop" if self.finish_reason == "stop" else "length",
            TopLogProbs(ids[:, 1:], log_probs[:, 1:]) if top else None,
            version,
        )
