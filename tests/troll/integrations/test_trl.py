"""The drop-in for TRL against TRL itself and against the package's own loss."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import Gemma2Config, GraniteConfig, Qwen3MoeConfig
from trl import GRPOConfig, GRPOTrainer

import troll
from tests.troll.integrations.tiny import WORDS, logged, make_model, make_trainer, next_inputs
from troll.integrations.trl import TROLLConfig, TROLLTrainer, check_seams

SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
FAMILIES = {
    "soft-capped logits": Gemma2Config(**SIZES, final_logit_softcapping=3.0),
    "scaled logits": GraniteConfig(**{k: v for k, v in SIZES.items() if k != "head_dim"}, logits_scaling=2.0),
    "untied output matrix": None,
}
TWO_UPDATES: dict[str, Any] = {"steps_per_generation": 2, "gradient_accumulation_steps": 1}
AGGREGATIONS = {
    "bnpo": "token-mean",
    "grpo": "seq-mean-token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
    "luspo": "seq-mean-token-sum",
    "dapo": "token-mean",
}


def gradients(trainer: GRPOTrainer, loss: Tensor) -> list[Tensor]:
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    return [g for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]


def assert_same_gradients(got: list[Tensor], want: list[Tensor], tolerance: float) -> None:
    left, right = (torch.cat([g.flatten() for g in part]) for part in (got, want))
    assert float((left - right).norm()) <= tolerance * float(right.norm())


def move(trainer: GRPOTrainer, amount: float) -> None:
    """Moves the policy away from the one that sampled."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(amount * parameter.std() * torch.randn(parameter.shape, generator=generator))


def completion_logits(trainer: GRPOTrainer, inputs: dict[str, Any]) -> Tensor:
    """Logits `[B, T, V]` of the completions by the model's ordinary forward."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    length = inputs["completion_ids"].shape[1]
    return trainer.model(input_ids=ids, attention_mask=mask).logits[:, -length - 1 : -1]


def moved_batch(trainer: GRPOTrainer, amount: float = 0.8) -> tuple[dict[str, Any], Tensor]:
    """A batch with advantages of every kind, the logits it was sampled from, and a trainer that has moved since."""
    inputs = next_inputs(trainer)
    inputs["advantages"] = torch.linspace(-1.5, 1.5, len(inputs["advantages"]))
    old_logits = completion_logits(trainer, inputs).detach()
    move(trainer, amount)
    return inputs, old_logits


def own_loss(
    trainer: GRPOTrainer, inputs: dict[str, Any], old_logits: Tensor, normalizer: float | None = None, **options: Any
) -> troll.LossOutput:
    """The package's own loss of the batch, from logits."""
    objective = dataclasses.replace(trainer.troll, **options)
    tokens, mask = inputs["completion_ids"], inputs["completion_mask"]
    old = troll.sparsify(old_logits, tokens, mask, temperature=trainer.temperature, **objective.sparsity)
    logits = completion_logits(trainer, inputs)
    return objective.loss(logits, old, tokens, inputs["advantages"], mask, normalizer=normalizer)


@pytest.mark.parametrize("updates", [{}, TWO_UPDATES], ids=["on policy", "two updates"])
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "cispo"])
def test_clip_is_grpo_trainer(loss_type: str, updates: dict[str, Any], tmp_path: Path) -> None:
    options = {"loss_type": loss_type, "objective": "clip", "beta": 0.0, **updates}
    results = []
    for kind in (GRPOTrainer, TROLLTrainer):
        trainer = make_trainer(tmp_path, kind, **options)
        inputs, _ = moved_batch(trainer)
        loss = trainer._compute_loss(trainer.model, inputs)
        results.append((loss.detach(), gradients(trainer, loss)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_training_with_clip_ends_where_grpo_trainer_ends(tmp_path: Path) -> None:
    ends = []
    for kind in (GRPOTrainer, TROLLTrainer):
        trainer = make_trainer(tmp_path, kind, objective="clip", max_steps=3, **TWO_UPDATES)
        trainer.train()
        ends.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in make_model().parameters()])
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], start)


@pytest.mark.parametrize("loss_type", AGGREGATIONS)
def test_loss_and_gradient_equal_the_packages(loss_type: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss_type=loss_type, temperature=0.8, max_tokens=8, **TWO_UPDATES)
    inputs, old_logits = moved_batch(trainer)
    # Divisors as TRL has them: the generation's tokens over its two updates, the longest completion allowed.
    normalizer = {"dapo": float(inputs["num_items_in_batch"]) / 2, "dr_grpo": 8 * 6.0}.get(loss_type)
    want = own_loss(trainer, inputs, old_logits, aggregation=AGGREGATIONS[loss_type], normalizer=normalizer)
    assert 0.1 < float(want.metrics["fraction_projected"]) < 1
    got = trainer._compute_loss(trainer.model, inputs)
    torch.testing.assert_close(got, want.loss, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(trainer, got), gradients(trainer, want.loss), 1e-4)


def test_sequence_ratios_equal_the_packages(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss_type="grpo", importance_sampling_level="sequence", **TWO_UPDATES)
    inputs, old_logits = moved_batch(trainer)
    want = own_loss(trainer, inputs, old_logits, aggregation="seq-mean-token-mean", ratio="sequence")
    got = trainer._compute_loss(trainer.model, inputs)
    torch.testing.assert_close(got, want.loss, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(trainer, got), gradients(trainer, want.loss), 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_output_layers_are_read_as_the_model_reads_them(family: str, tmp_path: Path) -> None:
    config = FAMILIES[family]
    model = make_model(config)
    if config is None:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    trainer = make_trainer(tmp_path, model=model, loss_type="bnpo", **TWO_UPDATES)
    inputs, old_logits = moved_batch(trainer)
    want = own_loss(trainer, inputs, old_logits)
    got = trainer._compute_loss(trainer.model, inputs)
    torch.testing.assert_close(got, want.loss, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(trainer, got), gradients(trainer, want.loss), 1e-4)


def test_old_rows_are_those_of_the_policy_that_sampled(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **TWO_UPDATES)
    inputs = next_inputs(trainer, times=2)
    logits = completion_logits(trainer, inputs)
    mask = inputs["completion_mask"].bool()
    want = troll.sparsify(logits, inputs["completion_ids"], mask)
    got = inputs["troll_old_token_log_probs"]
    torch.testing.assert_close(got[mask], want.token_log_probs[mask], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[mask], inputs["old_per_token_logps"][mask], rtol=1e-5, atol=1e-6)
    assert torch.equal(inputs["troll_old_ids"][mask][:, 0], inputs["completion_ids"][mask].int())


def test_the_first_update_has_a_ratio_of_one_and_stays_where_it_is(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss_type="bnpo", **TWO_UPDATES)
    inputs = next_inputs(trainer)
    assert "troll_old_ids" in inputs
    inputs["advantages"] = torch.linspace(-1.0, 1.5, 8)
    loss = trainer._compute_loss(trainer.model, inputs)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert metrics["troll/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["troll/kl_before_max"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["troll/fraction_projected"] == 0.0
    expected = -(inputs["advantages"].unsqueeze(1) * inputs["completion_mask"]).sum() / inputs["completion_mask"].sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_on_policy_the_ratio_is_exactly_one(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    inputs = next_inputs(trainer)
    assert "troll_old_ids" not in inputs
    trainer._compute_loss(trainer.model, inputs)
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert metrics["troll/ratio"] == metrics["troll/ratio_max"] == 1.0
    assert metrics["troll/kl_before_max"] == metrics["troll/regression"] == 0.0


@pytest.mark.parametrize("updates", [{}, TWO_UPDATES], ids=["on policy", "two updates"])
def test_reference_kl_is_trls(updates: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    differences = []
    for objective in ("clip", "troll"):
        model = make_model()
        model.config._name_or_path = str(folder)
        # A bound nothing reaches and no advantages: what is left of either loss is the reference term.
        options: dict[str, Any] = {
            "objective": objective,
            "kl_bound": 100.0,
            "beta": 0.5,
            "use_bias_correction_kl": False,
        }
        trainer = make_trainer(tmp_path, model=model, **options, **updates)
        move(trainer, 0.05)
        inputs = next_inputs(trainer)
        inputs["advantages"] = torch.zeros_like(inputs["advantages"])
        move(trainer, 0.05)
        loss = trainer._compute_loss(trainer.model, inputs)
        differences.append((loss.detach(), gradients(trainer, loss), trainer._metrics["train"]["kl"][-1]))
    (clip, clip_gradients, clip_kl), (mine, my_gradients, my_kl) = differences
    assert clip_kl > 1e-3
    assert my_kl == pytest.approx(clip_kl, rel=1e-4)
    torch.testing.assert_close(mine, clip, rtol=1e-4, atol=1e-6)
    assert_same_gradients(my_gradients, clip_gradients, 1e-4)


def test_adapters_are_the_policy_and_without_them_it_is_the_reference(tmp_path: Path) -> None:
    adapters = LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=4)
    trainer = make_trainer(tmp_path, adapters=adapters, loss_type="bnpo", beta=0.5, max_tokens=8, **TWO_UPDATES)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) * parameter.requires_grad)
    inputs, old_logits = moved_batch(trainer)
    mask, tokens = inputs["completion_mask"].bool(), inputs["completion_ids"].unsqueeze(-1)
    old = old_logits.log_softmax(-1).gather(-1, tokens).squeeze(-1)
    torch.testing.assert_close(inputs["troll_old_token_log_probs"][mask], old[mask], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(inputs["ref_per_token_logps"][mask], old[mask], atol=1e-2)
    want = own_loss(trainer, inputs, old_logits)
    got = trainer._compute_loss(trainer.model, inputs)
    reference = 0.5 * trainer._metrics["train"]["kl"][-1]
    assert got.item() - reference == pytest.approx(want.loss.item(), rel=1e-4, abs=1e-5)


def test_balancing_loss_of_experts_is_trls(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        **SIZES,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        router_aux_loss_coef=0.1,
    )
    losses = []
    for objective in ("clip", "troll"):
        trainer = make_trainer(tmp_path, model=make_model(config), objective=objective)
        trainer._compute_loss(trainer.model, next_inputs(trainer))
        losses.append(trainer._metrics["train"]["aux_loss"][-1])
    assert losses[0] > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_micro_batches_add_up_to_one_batch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps_per_generation=4, gradient_accumulation_steps=2)
    inputs = next_inputs(trainer)
    batches = trainer._buffered_inputs[:2]
    for part in batches:
        part["advantages"] = torch.linspace(-1.5, 1.5, len(part["advantages"]))
    move(trainer, 0.8)
    parts = sum(trainer._compute_loss(trainer.model, part).detach() for part in batches)
    # One window of two batches holds half of the generation's four.
    tokens = float(inputs["num_items_in_batch"]) / 2
    values = [
        troll.Troll()
        .loss(
            completion_logits(trainer, part),
            old_rows(part),
            part["completion_ids"],
            part["advantages"],
            part["completion_mask"],
            normalizer=tokens,
        )
        .loss.detach()
        for part in batches
    ]
    torch.testing.assert_close(parts, sum(values), rtol=1e-5, atol=1e-6)


def old_rows(inputs: dict[str, Any]) -> troll.SparseLogProbs:
    names = ("ids", "log_probs", "tail_log_prob", "kept_mass", "token_log_probs")
    return troll.SparseLogProbs(**{name: inputs[f"troll_old_{name}"] for name in names}, vocabulary_size=len(WORDS))


def test_a_batch_without_a_token_has_a_loss_of_zero_and_a_gradient(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, **TWO_UPDATES)
    inputs = next_inputs(trainer)
    inputs["completion_mask"] = torch.zeros_like(inputs["completion_mask"])
    loss = trainer._compute_loss(trainer.model, inputs)
    assert loss.item() == 0.0
    assert not any(g.any() for g in gradients(trainer, loss))


def test_sequences_off_policy_are_masked_as_trl_masks_them(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss_type="bnpo", off_policy_mask_threshold=0.0, alpha=0.0, **TWO_UPDATES)
    inputs, old_logits = moved_batch(trainer)
    tokens, mask = inputs["completion_ids"], inputs["completion_mask"]
    old = troll.sparsify(old_logits, tokens, mask)
    terms = troll.Troll(alpha=0.0).loss(completion_logits(trainer, inputs), old, tokens, inputs["advantages"], mask)
    got = trainer._compute_loss(trainer.model, inputs)
    assert got.item() != pytest.approx(terms.loss.item(), abs=1e-4)
    inputs["advantages"] = inputs["advantages"].abs()
    terms = troll.Troll(alpha=0.0).loss(completion_logits(trainer, inputs), old, tokens, inputs["advantages"], mask)
    got = trainer._compute_loss(trainer.model, inputs)
    assert got.item() == pytest.approx(terms.loss.item(), abs=1e-5)


def test_the_samplers_own_log_probs_decide_what_is_off_policy(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, off_policy_mask_threshold=0.05, alpha=0.0, **TWO_UPDATES)
    inputs, _ = moved_batch(trainer, 0.3)
    alone = trainer._compute_loss(trainer.model, inputs).item()
    same = {**inputs, "sampling_per_token_logps": inputs["old_per_token_logps"]}
    assert trainer._compute_loss(trainer.model, same).item() == pytest.approx(alone, abs=1e-6)
    # A sampler that was far surer of what it said leaves every sequence of negative advantage out.
    far = {**inputs, "sampling_per_token_logps": inputs["old_per_token_logps"] + 5.0}
    positive = {**inputs, "advantages": inputs["advantages"].clamp(min=0)}
    left = trainer._compute_loss(trainer.model, far).item()
    assert left == pytest.approx(trainer._compute_loss(trainer.model, positive).item(), abs=1e-6)
    assert left != pytest.approx(alone, abs=1e-4)


def test_tokens_of_tools_are_left_out(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss_type="bnpo", **TWO_UPDATES)
    inputs, old_logits = moved_batch(trainer)
    tools = torch.ones_like(inputs["completion_mask"])
    tools[:, 1:3] = 0
    without = {**inputs, "completion_mask": inputs["completion_mask"] * tools}
    logits, tokens = completion_logits(trainer, inputs), inputs["completion_ids"]
    old = troll.sparsify(old_logits, tokens, without["completion_mask"])
    want = troll.Troll().loss(logits, old, tokens, inputs["advantages"], without["completion_mask"]).loss
    got = trainer._compute_loss(trainer.model, {**inputs, "tool_mask": tools})
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_trls_metrics_are_logged_under_its_names(tmp_path: Path) -> None:
    names = []
    for objective in ("clip", "troll"):
        trainer = make_trainer(tmp_path, objective=objective, max_steps=1)
        trainer.train()
        names.append(set(trainer.state.log_history[0]))
    clip, mine = names
    assert clip <= mine
    assert {"troll/kl_before", "troll/kl_after", "troll/fraction_projected", "troll/regression"} <= mine - clip


def test_training_in_bfloat16_autocast_with_checkpointing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, bf16=True, gradient_checkpointing=True, max_steps=2, **TWO_UPDATES)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(logged(trainer, name))).all() for name in ("loss", "grad_norm", "entropy"))


def test_evaluation_has_a_loss(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=8)
    metrics = trainer.evaluate(trainer.train_dataset.select(range(8)))
    assert metrics["eval_loss"] == pytest.approx(0.0, abs=1e-5)
    assert trainer.state.log_history[-1]["eval_troll/ratio"] == 1.0


def test_reward_goes_up_and_the_bound_holds(tmp_path: Path) -> None:
    options: dict[str, Any] = {"per_device_train_batch_size": 16, "num_generations": 8, "max_completion_length": 4}
    trainer = make_trainer(tmp_path, max_steps=20, learning_rate=2e-2, **options, **TWO_UPDATES)
    trainer.train()
    rewards = logged(trainer, "reward")
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.4
    assert max(logged(trainer, "troll/kl_after_max")) <= 0.05 + 1e-6
    assert max(logged(trainer, "troll/fraction_projected")) > 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"loss_type": "cispo"}, "loss_type"),
        ({"delta": 2.0}, "delta"),
        ({"entropy_coef": 0.1}, "entropy_coef"),
        ({"use_adaptive_entropy": True}, "entropy_coef"),
    ],
)
def test_options_that_contradict_the_objective_are_refused(options: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        make_trainer(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"objective": "ppo"}, "objective"),
        ({"kl_bound": 0.0}, "kl_bound"),
        ({"alpha": -1.0}, "alpha"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tail": "even"}, "tail"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        TROLLConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


def test_a_plain_config_takes_the_defaults(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    plain = TROLLTrainer(
        make_model(),
        trainer.reward_funcs,
        args,
        train_dataset=trainer.train_dataset,
        processing_class=trainer.processing_class,
    )
    assert plain.troll == trainer.troll == troll.Troll(temperature=args.temperature)


def test_a_trainer_without_the_methods_stepped_in_at_is_refused() -> None:
    class Renamed:
        _compute_loss = _generate_and_score_completions = None

    with pytest.raises(ImportError, match="_get_per_token_logps_and_entropies"):
        check_seams(Renamed)
