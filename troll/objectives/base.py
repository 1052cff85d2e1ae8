"""What every objective does around its own formula: read the rows, weigh the tokens, reduce them to one number.

M selected tokens, V vocabulary, K slots of a sparse row.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, NamedTuple, TypedDict, TypeVar, get_args

from torch import Tensor

from troll import checks
from troll.aggregation import Aggregation, aggregate, need_sequences
from troll.batch import Batch, LossOutput, mean, select_batch
from troll.fused import kept_from_hidden, make_head
from troll.gradient import Backward
from troll.logits import kept_from_logits
from troll.metrics import LOSS, MAX, MEAN, SUM, Metric
from troll.reference import Reference, reference_kl
from troll.rows import SparseLogProbs, Tail
from troll.sparse import Kept

Ratio = Literal["token", "sequence"]
_MAX_LOG_RATIO = 10.0
MAX_TOKEN_LOG_RATIO = 80.0
"""Of one token: the exponential of what is larger overflows float32, and 0 times infinity is no gradient."""

Old = TypeVar("Old")
"""What an objective reads of the old policy at the M selected tokens."""


class Sparsity(TypedDict):
    """Which entries of the old policy's rows are kept: keyword arguments of `sparsify` and its like."""

    max_tokens: int
    dropped_mass: float
    default_prob: float
    tail: Tail


class Selection(TypedDict):
    """Which entries of the current policy's rows are read: given ones `[M, K]`, or the most likely."""

    at_ids: Tensor | None
    max_tokens: int
    dropped_mass: float


class Evaluation(NamedTuple):
    """An objective's own part of a call."""

    losses: dict[str, Tensor]
    """Summands of the loss, differentiable scalars; each is reported under its name."""
    metrics: dict[str, Tensor]
    """Detached scalars."""


@dataclass(frozen=True, kw_only=True)
class Objective(ABC, Generic[Old]):
    """What is minimised: a value that is made once and called on every batch.

    A class of its own says what it reads of both policies' rows, and its formula. Its options are its fields, checked
    when it is made.

    Raises:
        ValueError: names the option that does not fit.
    """

    temperature: float = 1.0
    """The sampling temperature, which logits are divided by."""
    ratio: Ratio = "token"
    """`"token"`, or `"sequence"` for the length-normalised ratio of the sequence (GSPO)."""
    aggregation: Aggregation = "token-mean"
    """See `troll.aggregation.aggregate`."""
    entropy_coefficient: float = 0.0
    """Weight of an entropy bonus."""

    metrics: ClassVar[dict[str, Metric]] = {
        "tokens": SUM,
        "ratio": MEAN,
        "ratio_max": MAX,
        "entropy": MEAN,
        "policy_loss": LOSS,
        "reference_kl": MEAN,
        "reference_loss": LOSS,
        "entropy_bonus": LOSS,
    }
    """Every metric it may report, and how parts of a batch become the whole."""

    def __post_init__(self) -> None:
        checks.positive("temperature", self.temperature)
        checks.one_of("ratio", self.ratio, get_args(Ratio))
        checks.one_of("aggregation", self.aggregation, get_args(Aggregation))
        checks.not_negative("entropy_coefficient", self.entropy_coefficient)

    @property
    @abstractmethod
    def sparsity(self) -> Sparsity:
        """What has to be kept of the old policy's rows: `sparsify(..., **objective.sparsity)`."""

    @property
    @abstractmethod
    def backward(self) -> Backward:
        """How `fused_loss` writes its gradient; see `Troll.backward`."""

    @abstractmethod
    def select_old(self, old: SparseLogProbs | Tensor, tokens: Tensor, batch: Batch, vocabulary_size: int) -> Old:
        """Checks the old policy against the batch, and selects the M tokens."""

    @abstractmethod
    def selection(self, old: Old, batch: Batch) -> Selection:
        """Which entries of the current policy's rows it needs."""

    @abstractmethod
    def evaluate(self, kept: Kept, old: Old, batch: Batch) -> Evaluation:
        """The formula, on the kept entries `[M, K]` of the current policy."""

    @abstractmethod
    def entropy(self, kept: Kept, old: Old) -> Tensor:
        """Entropies `[M]` that a bonus is given on, differentiable."""

    def loss(
        self,
        logits: Tensor,
        old: SparseLogProbs | Tensor,
        tokens: Tensor,
        advantages: Tensor,
        mask: Tensor | None = None,
        *,
        normalizer: float | Tensor | None = None,
        sequence_ids: Tensor | None = None,
        reference: Reference | None = None,
    ) -> LossOutput:
        """The loss from logits.

        Args:
            logits: `[..., V]` of the current policy, before the temperature.
            old: the sampling policy's rows, leading shape `[...]`, made with `sparsity` and at the temperature. Where
                the objective needs no more, the log-probabilities `[...]` of the sampled tokens do as well.
            tokens: `[...]` integer, the sampled tokens.
            advantages: `[...]`, or `[B]` for `[B, T]` tokens.
            mask: `[...]`, zero leaves a token out. Such rows are not read at all.
            normalizer: the divisor over the whole batch; this call's own count without it.
            sequence_ids: `[...]` integer, which sequence each token belongs to, for packed tokens `[N]`.
            reference: a policy to add a KL penalty towards.

        Raises:
            ValueError: names the argument that does not fit and, where rows are at fault, the first of them.
        """
        checks.logits_and_tokens("logits", logits, tokens)
        size = logits.shape[-1]
        batch = self._select(tokens, advantages, mask, size, normalizer, sequence_ids, reference)
        chosen = self.select_old(old, tokens, batch, size)
        kept = kept_from_logits(
            logits.reshape(-1, size),
            batch.rows,
            batch.tokens,
            temperature=self.temperature,
            **self.selection(chosen, batch),
        )
        return self._output(kept, chosen, batch)

    def fused_loss(
        self,
        hidden: Tensor,
        weight: Tensor,
        old: SparseLogProbs | Tensor,
        tokens: Tensor,
        advantages: Tensor,
        mask: Tensor | None = None,
        *,
        bias: Tensor | None = None,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        chunk_size: int | None = None,
        sparse_weight_grad: bool = False,
        normalizer: float | Tensor | None = None,
        sequence_ids: Tensor | None = None,
        reference: Reference | None = None,
    ) -> LossOutput:
        """`loss` from hidden states and the output matrix; logits exist a tile at a time.

        `logits = softcap(logit_scale * (hidden @ weight.T + bias))`. The other arguments are those of `loss`.

        Args:
            hidden: `[..., H]` last hidden states.
            weight: `[V, H]` output matrix, tied to the embedding or not. One that needs no gradient costs none.
            bias: `[V]`
            softcap: `cap tanh(logits / cap)`, as in Gemma 2.
            chunk_size: how many tokens to read against the vocabulary at a time; 1,024 without it.
            sparse_weight_grad: give the weight's gradient as a sparse tensor of the rows it touches, unless the
                objective's gradient is dense or a row needed the dense part. Autograd adds it in place to the dense
                one of an embedding that is tied to the weight, and a tensor `[V, H]` is saved; most optimizers take no
                sparse gradient of a weight that is not tied.
        """
        checks.logits_and_tokens("hidden", hidden, tokens)
        head = make_head(hidden, weight, bias, self.temperature, logit_scale, softcap)
        size = head.vocabulary_size
        batch = self._select(tokens, advantages, mask, size, normalizer, sequence_ids, reference)
        chosen = self.select_old(old, tokens, batch, size)
        flat = hidden.reshape(-1, hidden.shape[-1])
        kept = kept_from_hidden(
            flat if len(batch.rows) == len(flat) else flat[batch.rows],
            head,
            batch.tokens,
            rows=batch.rows,
            chunk_size=chunk_size,
            backward=self.backward,
            sparse_weight_grad=sparse_weight_grad and self.backward != "dense",
            **self.selection(chosen, batch),
        )
        return self._output(kept, chosen, batch)

    def total(self, values: Tensor, batch: Batch) -> Tensor:
        """One scalar from a value per token `[M]`."""
        return aggregate(values, batch.segments, self.aggregation, batch.normalizer)

    def importance(self, log_ratio: Tensor, batch: Batch) -> Tensor:
        """Importance weights `[M]` from the tokens' log-ratios.

        At sequence level (GSPO) a weight has the value of its sequence's geometric mean and the gradient of its own
        token. A token's log-ratio counts for `MAX_TOKEN_LOG_RATIO` at most, and keeps its gradient beyond: where no
        rule holds such a token back, the gradient's norm tells of it.
        """
        if self.ratio == "token":
            return (log_ratio - (log_ratio - MAX_TOKEN_LOG_RATIO).clamp(min=0).detach()).exp()
        of_sequence = batch.segments.mean(log_ratio.detach()).clamp(max=_MAX_LOG_RATIO).exp()
        return of_sequence[batch.segments.index] * (log_ratio - log_ratio.detach()).exp()

    def _select(
        self,
        tokens: Tensor,
        advantages: Tensor,
        mask: Tensor | None,
        vocabulary_size: int,
        normalizer: float | Tensor | None,
        sequence_ids: Tensor | None,
        reference: Reference | None,
    ) -> Batch:
        if self.ratio == "sequence":
            need_sequences(tokens.shape, sequence_ids, "ratio='sequence'")
        if self.aggregation != "token-mean":
            need_sequences(tokens.shape, sequence_ids, f"aggregation={self.aggregation!r}")
        return select_batch(tokens, advantages, mask, vocabulary_size, normalizer, sequence_ids, reference)

    def _output(self, kept: Kept, old: Old, batch: Batch) -> LossOutput:
        losses, metrics = self.evaluate(kept, old, batch)
        first, *others = losses.values()
        side_loss, side_metrics = self._side_terms(kept, old, batch)
        reported = metrics | side_metrics | {name: value.detach() for name, value in losses.items()}
        return LossOutput(sum(others, start=first) + side_loss, reported)

    def _side_terms(self, kept: Kept, old: Old, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted KL to the reference policy less the entropy bonus, and their metrics."""
        log_probs = kept.log_probs[:, 0]
        term, metrics = log_probs.new_zeros(()), {}
        if batch.reference is not None:
            divergence = reference_kl(log_probs, batch.reference.log_probs, batch.reference.estimator)
            term = batch.reference.coefficient * self.total(divergence, batch)
            metrics = {"reference_kl": mean(divergence), "reference_loss": term.detach()}
        if self.entropy_coefficient:
            bonus = self.entropy_coefficient * self.total(self.entropy(kept, old), batch)
            term, metrics = term - bonus, metrics | {"entropy_bonus": bonus.detach()}
        return term, metrics
