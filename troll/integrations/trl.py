"""TRL's GRPOTrainer with TROLL instead of the clip: change one import.

    from troll.integrations.trl import TROLLConfig as GRPOConfig, TROLLTrainer as GRPOTrainer

Generation, rewards, advantages, the kinds of aggregation (`loss_type`), reference KL, masks, logging and checkpoints
stay TRL's own. The trainer steps in at three places only: it keeps the old policy's sparse distributions where TRL
keeps the old log-probabilities, it puts the projected policy's log-ratio where TRL computes the network's, and it adds
the regression term. With `objective="clip"` it is GRPOTrainer and nothing else.

B sequences, T completion tokens, M tokens that count.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import GRPOConfig, GRPOTrainer

from troll import checks
from troll.batch import mean
from troll.fused import fused_sparsify, kept_from_hidden, make_head
from troll.integrations.output_layer import OutputLayer, Reader, Reading, divert_output_layer
from troll.metrics import MEAN, combine
from troll.objectives.troll import Troll, describe
from troll.rows import TENSORS, SparseLogProbs
from troll.sparse import Kept, sparse_from_kept
from troll.terms import Terms, token_terms

AGGREGATIONS = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
"""TRL's `loss_type`s that say how tokens are averaged. The others are clipping rules of their own."""
_OLD = "troll_old_"
_SEAMS = ("_generate_and_score_completions", "_get_per_token_logps_and_entropies", "_compute_loss")


def check_seams(trainer: type) -> None:
    """Refuses a trainer without the methods this module steps in at: it would train without TROLL and not say so."""
    missing = [name for name in _SEAMS if not hasattr(trainer, name)]
    if missing:
        raise ImportError(f"trl: GRPOTrainer has no {', '.join(missing)}; install the version this was made for, 1.16")


check_seams(GRPOTrainer)


@dataclass
class TROLLConfig(GRPOConfig):
    """`GRPOConfig` with the objective's options. `epsilon`, `epsilon_high` and `delta` belong to the clip alone."""

    objective: str = field(default="troll", metadata={"help": "`troll`, or `clip` for GRPOTrainer as it is."})
    kl_bound: float = field(default=0.05, metadata={"help": "Size of every token's trust region, in nats."})
    alpha: float = field(default=1.0, metadata={"help": "Weight of the pull of the network back to its projection."})
    max_tokens: int = field(default=64, metadata={"help": "The most likely tokens kept of a distribution, at most."})
    dropped_mass: float = field(default=1e-5, metadata={"help": "Probability that the kept tokens may leave out."})
    default_prob: float = field(default=1e-12, metadata={"help": "Probability of each token left out."})
    tail: str = field(
        default="constant", metadata={"help": "`constant`: `default_prob` for what is left out; `mass`: its true mass."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("objective", self.objective, ("troll", "clip"))
        objective_of(self)


OPTIONS = {option.name for option in fields(TROLLConfig)} - {option.name for option in fields(GRPOConfig)}


def objective_of(config: GRPOConfig) -> Troll | None:
    """The objective of a `TROLLConfig`, TROLL's defaults for a plain `GRPOConfig`; None where the loss is TRL's own.

    Raises:
        ValueError: names the option that does not fit.
    """
    given = {name: getattr(config, name) for name in OPTIONS if hasattr(config, name)}
    if given.pop("objective", "troll") == "clip":
        return None
    return Troll(temperature=config.temperature, **given)


@dataclass
class _Update:
    """What one call of the loss knows: what TRL handed in, and what was read on the way."""

    inputs: dict[str, Any]
    mask: Tensor
    """`[B, T]` bool, the tokens that count."""
    old: dict[str, Tensor]
    """The old policy's rows `[B, T]`, by field; empty if the policy that sampled is the one that is updated."""
    terms: Terms | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)
    log_probs: Tensor | None = None
    """`[M]` the network's own, differentiable."""
    old_log_probs: Tensor | None = None
    """`[M]`"""

    def spread(self, values: Tensor) -> Tensor:
        """Values of the tokens that count `[M]` as `[B, T]`, zero elsewhere; differentiable even where M is 0."""
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)


class TROLLTrainer(GRPOTrainer):
    """`GRPOTrainer` trained with TROLL; every argument is GRPOTrainer's.

    `args` may be a `TROLLConfig` or a plain `GRPOConfig`, which takes TROLL's defaults.

    Raises:
        ValueError: options that contradict the objective, or that it cannot honour.
    """

    _tag_names = ["trl", "grpo", "troll"]  # noqa: RUF012 - as in the class above
    _name = "TROLL"
    _paper = {  # noqa: RUF012
        "title": "TROLL: Trust Regions improve Reinforcement Learning for Large Language Models",
        "id": "2510.03817",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._reader: Reader | None = None
        self._update: _Update | None = None
        self._old: list[SparseLogProbs] = []
        self._wants_old = False
        super().__init__(*args, **kwargs)
        self.troll = objective_of(self.args)
        if self.troll is None:
            return
        self._check_options()
        # TRL's ratio is never outside an infinite interval.
        self.epsilon_low = self.epsilon_high = math.inf
        # An adapter (PEFT) wraps the model whose forward pass TRL has patched.
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        divert_output_layer(base, lambda: self._reader, self.args.cast_lm_head_to_fp32)

    def _check_options(self) -> None:
        if self.loss_type not in AGGREGATIONS:
            raise ValueError(
                f"loss_type: {self.loss_type!r} clips by a rule of its own; with objective='troll' choose how tokens "
                f"are averaged: {', '.join(AGGREGATIONS)}"
            )
        if self.args.delta is not None:
            raise ValueError("delta: bounds the clipped ratio; leave it out with objective='troll'")
        if self._entropy_bonus_enabled:
            raise ValueError(
                "entropy_coef: an entropy bonus needs gradients that objective='troll' does not compute; set it to 0 "
                "and use_adaptive_entropy to False"
            )
        if is_deepspeed_zero3_enabled():
            raise ValueError("deepspeed: ZeRO stage 3 takes the output layer away before the backward pass; use FSDP2")

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.troll is None:
            return super()._generate_and_score_completions(inputs)
        self._wants_old, self._old = True, []
        try:
            output = super()._generate_and_score_completions(inputs)
            # TRL asks for the old policy first, and only if it is not the one that is updated.
            if "old_per_token_logps" in output:
                old = SparseLogProbs.cat(self._old)
                output |= {_OLD + name: getattr(old, name) for name in TENSORS}
        finally:
            self._wants_old, self._old = False, []
        return output

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        wanted = (input_ids, attention_mask, logits_to_keep, *args)
        update = self._update
        if update is not None:
            self._reader = lambda layer: self._read_new(layer, update)
        elif self._wants_old and model is self.model:
            self._reader = lambda layer: self._read_old(layer, logits_to_keep)
            self._wants_old = False
        try:
            result: tuple[Tensor, Tensor | None, Tensor | None] = super()._get_per_token_logps_and_entropies(
                model, *wanted, **kwargs
            )
        finally:
            self._reader = None
        if update is not None:
            _relate_to_old(update, result[0])
        return result

    def _read_old(self, layer: OutputLayer, length: int) -> Reading:
        """Keeps the old policy's rows of a few sequences."""
        assert self.troll is not None
        labels = layer.labels[:, -length:]
        mask = labels != -100
        rows = fused_sparsify(
            layer.hidden[:, -length:],
            layer.weight,
            labels.clamp(min=0),
            mask,
            bias=layer.bias,
            logit_scale=layer.logit_scale,
            softcap=layer.softcap,
            temperature=self.temperature,
            **self.troll.sparsity,
        )
        self._old.append(rows)
        return Reading(rows.token_log_probs, torch.zeros_like(rows.token_log_probs))

    def _read_new(self, layer: OutputLayer, update: _Update) -> Reading:
        """Projects the tokens that count; returns the projected policy's log-ratios and the entropies."""
        objective, length = self.troll, update.mask.shape[1]
        assert objective is not None
        rows = update.mask.reshape(-1).nonzero().squeeze(-1)
        kept = kept_from_hidden(
            layer.hidden[:, -length:][update.mask],
            make_head(layer.hidden, layer.weight, layer.bias, self.temperature, layer.logit_scale, layer.softcap),
            layer.labels[:, -length:][update.mask],
            rows=rows,
            at_ids=None,
            max_tokens=objective.max_tokens,
            dropped_mass=objective.dropped_mass,
            chunk_size=None,
            backward=objective.backward,
        )
        size, default_prob, tail = len(layer.weight), objective.default_prob, objective.tail
        if not update.old:
            frozen = Kept(*(column.detach() for column in kept))
            old = sparse_from_kept(frozen, size, default_prob, tail)
        else:
            old = SparseLogProbs(**update.old, vocabulary_size=size).select(rows)
        terms = token_terms(kept.ids, kept.log_probs, old, objective.kl_bound, default_prob, tail)
        update.terms, update.metrics = terms, describe(terms, terms.log_ratio.detach().exp(), kept, old)
        update.log_probs, update.old_log_probs = kept.log_probs[:, 0], old.token_log_probs
        return Reading(update.spread(terms.log_ratio), update.spread(kept.entropy))

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if self.troll is None:
            return super()._compute_loss(model, inputs)
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        old = {name: inputs[_OLD + name] for name in TENSORS if _OLD + name in inputs}
        self._update = update = _Update(dict(inputs), mask.bool(), old)
        try:
            loss = super()._compute_loss(model, update.inputs)
        finally:
            self._update = None
        assert update.terms is not None
        regression = self._aggregate(update.spread(update.terms.regression), mask, inputs)
        self._log_update(update)
        return loss + self.troll.alpha * regression

    def _aggregate(self, values: Tensor, mask: Tensor, inputs: dict[str, Any]) -> Tensor:
        """One number of values `[B, T]`, divided as TRL divides the policy's loss of the same batch."""
        training = self.model.training
        window = self.current_gradient_accumulation_steps if training else 1
        totals, lengths = (values * mask).sum(-1), mask.sum(-1).clamp(min=1)
        if self.loss_type == "dapo":
            share = window / self.args.steps_per_generation if training else 1.0
            whole = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
            return totals.sum() / (whole * share)
        if self.loss_type == "grpo":
            return (totals / lengths).mean() / window
        if self.loss_type == "bnpo":
            return totals.sum() / mask.sum().clamp(min=1) / window
        if self.loss_type == "dr_grpo":
            return totals.sum() / (len(values) * self.max_completion_length) / window
        return totals.mean() / window

    def _log_update(self, update: _Update) -> None:
        """Logs the objective's metrics under `troll/`, over the tokens of all processes."""
        metrics = dict(update.metrics)
        assert update.terms is not None
        metrics["regression"] = mean(update.terms.regression)
        # TRL reports the entropy itself.
        del metrics["entropy"]
        local = torch.stack([value.to(metrics["tokens"].dtype) for value in metrics.values()])
        parts = [dict(zip(metrics, part, strict=True)) for part in self.accelerator.gather(local.unsqueeze(0)).tolist()]
        combined = combine(Troll.metrics | {"regression": MEAN}, parts)
        logged = self._metrics["train" if self.model.training else "eval"]
        for name in sorted(metrics.keys() - {"tokens"}):
            # Where there is nothing to average the value is NaN, which TRL leaves out of its means.
            logged[f"troll/{name}"].append(combined.get(name, math.nan))


def _relate_to_old(update: _Update, log_ratio: Tensor) -> None:
    """Restates every log-probability TRL will compare with `log_ratio` `[B, T]` as a distance from the old policy's.

    TRL takes differences only. The reference policy's distance to the network, which the projection does not touch,
    stays what it is, with its gradient.
    """
    assert update.log_probs is not None
    assert update.old_log_probs is not None
    inputs, old = update.inputs, update.spread(update.old_log_probs)
    inputs["old_per_token_logps"] = torch.zeros_like(log_ratio)
    if "sampling_per_token_logps" in inputs:
        inputs["sampling_per_token_logps"] = inputs["sampling_per_token_logps"] - old
    if "ref_per_token_logps" in inputs:
        network = update.spread(update.log_probs)
        inputs["ref_per_token_logps"] = (inputs["ref_per_token_logps"] - network + log_ratio) * update.mask
