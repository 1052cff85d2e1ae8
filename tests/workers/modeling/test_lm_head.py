"""What a model makes of its output layer's logits is recognised, and the loss layer does the same."""

from pathlib import Path

import pytest
import torch

from tests.workers.training import tiny
from tests.workers.training.optim.test_update import hyperparameters, sampled, train
from workers.modeling import policy
from workers.modeling.lm_head import LogitTransform, recognise
from workers.modeling.policy import Policy
from workers.training.optim import objective, update

SHAPED = {
    "gemma2": LogitTransform(softcap=2.0),
    "granite": LogitTransform(logit_scale=1 / 4),
    "cohere": LogitTransform(logit_scale=1 / 4),
    "recurrent_gemma": LogitTransform(softcap=2.0),
}


def load(folder: Path, family: str) -> Policy:
    return policy.load(tiny.save(folder / family, family), torch.device("cpu"))


@pytest.mark.parametrize("family", [*SHAPED, "qwen3", "gpt2"])
def test_what_follows_the_output_layer_is_recognised(family: str) -> None:
    model = tiny.model(family)
    assert recognise(model) == (model.get_output_embeddings(), SHAPED.get(family, LogitTransform()))


def test_what_the_configuration_does_not_tell_is_left_to_the_model() -> None:
    model = tiny.model("gemma2")
    model.register_forward_hook(lambda module, inputs, result: setattr(result, "logits", result.logits + 0.1))
    assert recognise(model) is None


def test_a_configuration_that_is_not_followed_is_not_believed() -> None:
    model = tiny.model("qwen3")
    model.config.logit_scale, model.config.final_logit_softcapping = 0.5, 30.0
    assert recognise(model) == (model.get_output_embeddings(), LogitTransform())


@pytest.mark.parametrize("objective", ["troll", "clip"])
@pytest.mark.parametrize("family", SHAPED)
def test_the_loss_from_hidden_states_is_the_loss_from_the_models_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, objective: str
) -> None:
    h = hyperparameters(objective=objective, max_grad_norm=1000, learning_rate=3e-3)
    fused = load(tmp_path, family)
    groups = sampled(fused)
    monkeypatch.setattr(policy, "recognise", lambda model: None)
    whole = load(tmp_path, family)
    assert (fused.lm_head is None, whole.lm_head is None) == (False, True)
    (numbers, gradients), (expected, wanted) = (train(each, groups, h, updates=2) for each in (fused, whole))
    assert numbers["policy_loss"] == pytest.approx(expected["policy_loss"], rel=1e-5, abs=1e-6)
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert float((ours - theirs).norm()) <= 1e-4 * float(theirs.norm()) + 1e-6


@pytest.mark.parametrize("family", SHAPED)
def test_so_is_the_cross_entropy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    fused = load(tmp_path, family)
    batch = update.plan(sampled(fused), fused, hyperparameters())[0].parts[0]
    monkeypatch.setattr(policy, "recognise", lambda model: None)
    losses = [objective.cross_entropy(each, batch).loss.item() for each in (fused, load(tmp_path, family))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_no_logits_of_a_whole_batch_are_made(tmp_path: Path) -> None:
    loaded = load(tmp_path, "gemma2")
    groups = sampled(loaded)

    def fail(*_: object) -> None:
        raise AssertionError("the output layer was called")

    assert loaded.lm_head is not None
    loaded.lm_head.register_forward_hook(fail)
    train(loaded, groups, hyperparameters())
