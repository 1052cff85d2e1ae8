"""What the training loop asks of a rollout engine: token ids in, sampled token ids and their log-probabilities out.

Text never passes through here: what was sampled is what is trained on, token by token.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from service.contracts.engines import MEMORY_SHARE

if TYPE_CHECKING:
    # Without torch, so that a process can know what may go wrong before it has imported everything.
    from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
    from workers.modeling.policy import Policy
    from workers.rollouts.grammar import Grammar
    from workers.rollouts.top_log_probs import TopLogProbs


@dataclass(frozen=True)
class Sampling:
    """How to sample. The same prompts, weights and ``Sampling`` give the same rollouts."""

    temperature: float
    """0 is greedy."""
    max_tokens: int
    """Most tokens of one answer, the end-of-sequence token included."""
    seed: int
    first: int = 0
    """Number of the first prompt among all that are sampled with this seed, by several processes perhaps."""
    stride: int = 1
    """How far apart the numbers of two prompts in sequence are."""
    grammar: "Grammar | None" = None
    """What every answer is held to: it is sampled from the tokens that may come next alone."""

    top_p: float = 1.0
    """Below 1, tokens are sampled from the most likely ones that have so much probability together. Answers sampled so
    are for evaluations: whether their ``log_probs`` know of it is up to the engine."""

    top: bool = True
    """Whether rollouts carry the most likely tokens, where the engine was started to give them."""

    def number(self, prompt: int) -> int:
        """The number of the prompt at index ``prompt``, which its random numbers follow from."""
        return self.first + self.stride * prompt


@dataclass(frozen=True)
class Rollout:
    """One sampled answer of n tokens."""

    token_ids: list[int]
    """``[n]``; ends with the end-of-sequence token when ``finish_reason`` is ``"stop"``."""
    log_probs: list[float]
    """``[n]`` log-probability of each sampled token at the sampling temperature (at 1 when sampling is greedy), among
    those that the grammar allows."""
    finish_reason: Literal["stop", "length"]
    top: "TopLogProbs | None" = None
    """The most likely tokens of each position, where the engine was asked for them."""
    version: int = 0
    """How often weights had been pushed to the engine when it sampled the first token."""
    continued: int = 0
    """After how many pushes of weights since then it was continued (a partial rollout)."""

    def extended(self, piece: "Rollout") -> "Rollout":
        """This, unfinished as it is, with ``piece`` behind it, which was sampled by later weights."""
        if not self.token_ids:
            return piece
        top = self.top and piece.top and self.top.extended(piece.top)
        tokens, log_probs = self.token_ids + piece.token_ids, self.log_probs + piece.log_probs
        continued = piece.version - self.version
        return Rollout(tokens, log_probs, piece.finish_reason, top, self.version, continued)


UNBEGUN = Rollout([], [], "length")
"""An answer without a token yet."""


@dataclass(frozen=True)
class Begun:
    """An answer of which the next piece is to be sampled."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]
    """Those it has; none where it is new."""
    max_tokens: int
    """Most tokens of the piece."""
    seed: int
    """Of the piece's random numbers."""

    @property
    def context(self) -> list[int]:
        """What the piece goes on from."""
        return [*self.prompt_ids, *self.token_ids]


@dataclass(frozen=True)
class EngineRequest:
    """What a job asks of its engine when it starts."""

    policy: "Policy"
    """The model that is trained."""
    hyperparameters: "ResolvedHyperparameters"
    prompts: "Sequence[Sequence[int]]"
    """Token ids of all that will be answered."""
    longest_answer: int
    """In tokens."""
    tensor_parallel: int = 1
    """How many processes in sequence are to share one engine, where it has weights of its own."""
    grammar: "Grammar | None" = None
    """What answers may be held to."""
    memory_share: float = MEMORY_SHARE
    """Share of the GPU's memory for an engine with weights of its own."""

    @property
    def top_log_probs(self) -> int:
        """How many most likely tokens rollouts are to carry for each position: the sampler's distributions."""
        h = self.hyperparameters
        return min(h.max_tokens_kept, self.policy.vocabulary_size) if h.old_policy == "sampler" else 0


class NonFiniteLogitsError(Exception):
    """The model's logits are NaN or infinite: its weights are beyond repair."""


class RolloutEngine(ABC):
    """Samples answers from the weights that were pushed to it last. One thread at a time may use it."""

    together: int = 1
    """How many processes in sequence share the engine: each has to ask the same of it and gets the same answers."""

    top_log_probs: int = 0
    """How many most likely tokens its rollouts carry for each position."""

    asleep: bool = False
    """Whether it gave its GPU memory to the trainer; it is woken before weights are pushed to it again."""

    version: int
    """How often weights were pushed to it."""

    @classmethod
    @abstractmethod
    def of_job(cls, request: EngineRequest) -> Self:
        """The engine of a job; the first weights are pushed to it next.

        Raises ``EngineUnavailableError``, and ``RunError`` for what it cannot do.
        """

    @abstractmethod
    def push(self, policy: "Policy", probes: Sequence[Sequence[int]]) -> None:
        """Bring its weights up to date with ``policy``'s.

        Raises ``WeightsOutOfSyncError`` when the two then disagree on the tokens of ``probes``, and
        ``StaleWeightsError`` and ``EngineDiedError`` where weights do not arrive.
        """

    def check_sampling(self, policy: "Policy", probes: Sequence[Sequence[int]]) -> None:
        """Asked once, after the first push: is what it samples as likely as ``policy`` finds it? Raises ``RunError``.

        Nothing to find out where ``push`` compares the two.
        """
        return

    def sleep(self) -> None:
        """Give its GPU memory to the trainer, where it shares a GPU with it and may sleep. Raises ``EngineDiedError``.

        Until it is woken and weights are pushed to it, nothing can be sampled.
        """
        return

    def wake(self) -> None:
        """Take the memory back, where it sleeps. Raises ``EngineDiedError``."""
        return

    @abstractmethod
    def stream(
        self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling
    ) -> Generator[tuple[int, list[Rollout]]]:
        """``samples`` rollouts of each prompt with the prompt's index, each group as soon as it is complete.

        What is sampled does not depend on the order. Closing the generator early gives up the rest. Raises
        ``NonFiniteLogitsError``, and ``GrammarFailedError`` where an answer can be held to the grammar no further.
        """

    @abstractmethod
    def extend(
        self, begun: Sequence[Begun], temperature: float, grammar: "Grammar | None" = None
    ) -> Generator[tuple[int, Rollout]]:
        """The next piece of each answer with the answer's index, as soon as it is there: its new tokens alone.

        A piece whose ``finish_reason`` is ``"length"`` has ``max_tokens``, or reaches the end of the context. Only new
        answers can be held to ``grammar``. Closing the generator early gives up the rest. Raises as ``stream`` does.
        """

    def generate(self, prompts: Sequence[Sequence[int]], samples: int, sampling: Sampling) -> list[list[Rollout]]:
        """The groups of ``stream``, in the order of the prompts. Raises as it does."""
        groups = dict(self.stream(prompts, samples, sampling))
        return [groups[i] for i in range(len(prompts))]
