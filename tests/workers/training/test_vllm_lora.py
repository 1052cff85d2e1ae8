"""A LoRA job that samples with vLLM: every update's adapter reaches the sampler."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters
from tests.workers.training import tiny
from workers.demo import make_tokenizer
from workers.modeling import policy
from workers.modeling.lora import Lora
from workers.modeling.policy import Policy
from workers.rollouts.engine import Sampling
from workers.rollouts.probe import WeightsOutOfSyncError
from workers.rollouts.vllm import VLLMEngine
from workers.training.data.batch import TrainingSample
from workers.training.optim import update
from workers.training.sampling.sampler import Sampler, make_sampler

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13]]

H = resolve(
    Hyperparameters(
        rollout_engine="vllm",
        lora_rank=4,
        learning_rate=0.05,
        batch_size=2,
        mini_batches=1,
        max_completion_tokens=8,
        mismatch_correction="none",
    ),
    training_rows=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3 whose heads are as wide as vLLM's kernels need."""
    folder = tmp_path_factory.mktemp("vllm-lora") / "base"
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        **tiny.plain(len(make_tokenizer())), head_dim=32, tie_word_embeddings=True, initializer_range=0.25
    )
    config.eos_token_id = make_tokenizer().eos_token_id
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> Iterator[Sampler]:
    loaded = policy.load(folder, CPU, Lora(H.lora_rank, H.lora_alpha, 3, "base"))
    made = make_sampler(loaded, H, PROMPTS, H.max_completion_tokens)
    yield made
    assert isinstance(made.engine, VLLMEngine)
    made.engine.close()


def parted(made: Sampler, other: Policy) -> float:
    """How far what vLLM samples is from ``other``'s log-probabilities, in nats at worst."""
    groups = made.engine.generate(PROMPTS, 2, Sampling(1.0, 8, seed=1))
    return max(
        abs(ours - theirs)
        for prompt, group in zip(PROMPTS, groups, strict=True)
        for rollout in group
        for ours, theirs in zip(
            rollout.log_probs, other.score([prompt + rollout.token_ids])[0][len(prompt) - 1 :], strict=True
        )
    )


def test_after_an_update_vllm_follows_the_adapter_and_leaves_the_base(made: Sampler, folder: Path) -> None:
    base = policy.load(folder, CPU)
    assert parted(made, base) < 1e-3
    optimizer = update.make_optimizer(made.policy, H)
    for step in (1, 2):
        rollouts = made.engine.generate(PROMPTS, 4, Sampling(1.0, 8, seed=step))
        groups = [
            [TrainingSample(prompt, each, value) for each, value in zip(group, (1.5, -0.5, -1.0, 0.0), strict=True)]
            for prompt, group in zip(PROMPTS, rollouts, strict=True)
        ]
        batches = update.plan(groups, made.policy, H)
        update.update_policy(made.policy, optimizer, batches, update.read_old_policy(made.policy, batches, H), H, step)
        made.push()
        assert parted(made, made.policy) < 1e-3
    assert parted(made, base) > 0.1


def test_an_update_that_was_not_pushed_is_noticed(made: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    made.push()
    with torch.no_grad():
        for parameter in made.policy.model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    monkeypatch.setattr(VLLMEngine, "sync_adapter", lambda engine, config, tensors: engine.version + 1)
    with pytest.raises(WeightsOutOfSyncError, match="after push"):
        made.push()
