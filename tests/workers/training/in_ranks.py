"""What one process and two do alike: trained by whoever imports this, and by torchrun in two ranks.

``torchrun --nproc-per-node 2 -m tests.workers.training.in_ranks FOLDER`` trains every case of ``CASES``, whose model
folders lie in ``FOLDER``, saves a checkpoint of the first, goes on from the one that a single process left there, and
writes down what came out.
"""

import json
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from tests.workers.training import tiny
from workers.answers import AnswerReader
from workers.data.conversations import Example
from workers.data.prompts import Prompt
from workers.demo import make_tokenizer
from workers.graders import Grade, GraderSample
from workers.modeling import distributed, lora, policy, sharding
from workers.modeling.critic import load_critic
from workers.modeling.lora import Lora
from workers.modeling.policy import Policy
from workers.rollouts.engine import Rollout
from workers.rollouts.transformers import TransformersEngine
from workers.training import checkpoint, supervised
from workers.training.checkpoint import TrainerState
from workers.training.data.batch import Allowed, TrainingSample
from workers.training.optim import critic, reference, update
from workers.training.optim.critic import Critic
from workers.training.sampling import partial, prefetched
from workers.training.sampling.collection import Collection, Grading
from workers.training.sampling.partial import PartialRollouts

STEPS, PPO_STEPS = 5, 3
EXAMPLES = [Example([5, 6, 7, 8, 9, 10], [3, 4, 5]), Example([7, 8, 9], [1, 2]), Example([3, 4, 5, 6, 7], [4])]


@dataclass(frozen=True)
class Case:
    """A model to train and how."""

    family: str
    lora_rank: int = 0
    dtype: torch.dtype = torch.float32
    asked: tuple[tuple[str, Any], ...] = ()
    held: bool = False
    """Whether only some tokens might have been said in the place of each."""


CASES = {
    "tied": Case("qwen3", dtype=torch.bfloat16),
    "lora": Case("llama", lora_rank=4),
    "recomputed": Case("llama", asked=(("gradient_checkpointing", "always"), ("aggregation", "seq-mean-token-mean"))),
    "held": Case("qwen3", held=True),
    "capped": Case("gemma2", asked=(("objective", "clip"), ("aggregation", "seq-mean-token-sum-norm"))),
}
"""The first shares its output layer with its embeddings; the last caps its logits."""
PPO: dict[str, tuple[str, str]] = {
    "ppo": ("recomputed", "gae"),
    "ppo-lora": ("lora", "gae"),
    "kl-in-reward": ("recomputed", "rloo"),
}
"""The case whose model it is, and the estimator; KL to the reference is taken from the reward."""


def folder_of(root: Path, name: str) -> Path:
    return root / f"model-{name}"


def hyperparameters(name: str) -> ResolvedHyperparameters:
    wanted = {"mini_batches": 2, "learning_rate": 1e-3, "max_completion_tokens": 6, "max_grad_norm": 100.0}
    return resolve(Hyperparameters(**(wanted | dict(CASES[name].asked))), training_rows=8)


def load(root: Path, name: str, folder: Path | None = None) -> tuple[Policy, torch.optim.AdamW]:
    """The case's policy, spread over the ranks if there are several, and its optimizer."""
    h, device = hyperparameters(name), torch.device("cpu")
    where = folder or folder_of(root, name)
    loaded = policy.load(where, device, adapters_of(name), recompute=h.gradient_checkpointing)
    if distributed.size() > 1:
        sharding.shard(loaded)
    return loaded, update.make_optimizer(loaded, h)


def adapters_of(name: str) -> Lora | None:
    rank = CASES[name].lora_rank
    return Lora(rank, 2 * rank, seed=3, base="tiny") if rank else None


def groups() -> list[list[TrainingSample]]:
    """Answers of many lengths to three prompts; the second mini-batch is a single answer, too little for two ranks."""
    generator = torch.Generator().manual_seed(1)

    def ids(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most + 1, (), generator=generator))
        return torch.randint(3, 20, (length,), generator=generator).tolist()

    def answer(prompt: list[int]) -> TrainingSample:
        tokens = ids(1, 6)
        return TrainingSample(
            prompt, Rollout(tokens, [-2.0] * len(tokens), "stop"), float(torch.randn((), generator=generator))
        )

    return [
        [answer(prompt) for _ in range(count)] for prompt, count in ((ids(2, 9), 5), (ids(2, 9), 4), (ids(2, 9), 1))
    ]


def step(loaded: Policy, optimizer: torch.optim.AdamW, name: str, number: int) -> update.Numbers:
    h = hyperparameters(name)
    batches = update.plan(_in_two(groups()), loaded, h, some_allowed if CASES[name].held else None)
    old = update.read_old_policy(loaded, batches, h)
    batches, numbers = update.correct_mismatch(batches, old, h)
    return numbers | update.update_policy(loaded, optimizer, batches, old, h, number)


def some_allowed(samples: Sequence[TrainingSample]) -> Allowed:
    """About half of 31 tokens in the place of each, which is among them; the same whoever trains on it."""
    words = []
    for sample in samples:
        for place, token in enumerate(sample.rollout.token_ids):
            drawn = random.Random(f"{sample.prompt_ids} {sample.rollout.token_ids} {place}").getrandbits(31)
            words.append([drawn | 1 << token])
    return Allowed.of(torch.tensor(words, dtype=torch.int32).reshape(len(words), 1))


def _in_two(made: Sequence[list[TrainingSample]]) -> list[list[TrainingSample]]:
    """Groups that fall into two mini-batches: all but the last, and the last."""
    return [[sample for group in made[:-1] for sample in group], made[-1]]


def gradients(loaded: Policy) -> dict[str, Tensor]:
    """Of the last mini-batch."""
    found = {name: p.grad for name, p in loaded.model.named_parameters() if p.grad is not None}
    return _plain(found)


def weights(loaded: Policy) -> dict[str, Tensor]:
    sharding.reshard(loaded.model)
    return _plain({name: p.detach() for name, p in loaded.model.named_parameters() if p.requires_grad})


def state(loaded: Policy, optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The weights and all that the optimizer remembers."""
    sharding.reshard(loaded.model)
    named = dict(loaded.model.named_parameters())
    moments = {f"{kind}/{name}": v for name, p in named.items() for kind, v in optimizer.state.get(p, {}).items()}
    return weights(loaded) | _plain(moments)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous().clone() for name, tensor in sharding.whole(tensors.items())}


def train(root: Path, name: str) -> tuple[list[update.Numbers], dict[str, Tensor], dict[str, Tensor]]:
    """The numbers of every step, the first step's last gradients, and the weights at the end."""
    loaded, optimizer = load(root, name)
    first: dict[str, Tensor] = {}
    keeping = optimizer.register_step_pre_hook(lambda *_: first.update(gradients(loaded)))
    numbers = [step(loaded, optimizer, name, 1)]
    keeping.remove()
    numbers += [step(loaded, optimizer, name, number) for number in range(2, STEPS + 1)]
    return numbers, first, weights(loaded)


def save_and_go_on(root: Path, name: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint of two steps in ``folder``, the state that it holds, and the weights after another step."""
    loaded, optimizer = load(root, name)
    step(loaded, optimizer, name, 1)
    step(loaded, optimizer, name, 2)
    checkpoint.save(folder, loaded, optimizer, TrainerState(2, 17))
    saved = state(loaded, optimizer)
    step(loaded, optimizer, name, 3)
    return saved, weights(loaded)


def resume(root: Path, name: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state that the checkpoint in ``folder`` brings back, and the weights after another step."""
    model = None if CASES[name].lora_rank else folder / checkpoint.MODEL
    loaded, optimizer = load(root, name, model)
    assert checkpoint.restore(folder, loaded, optimizer) == TrainerState(2, 17)
    found = state(loaded, optimizer)
    step(loaded, optimizer, name, 3)
    return found, weights(loaded)


def supervise(root: Path) -> tuple[list[float], dict[str, Tensor]]:
    """Loss and accuracy of three examples and of one, too few for two ranks, and the gradients of both."""
    loaded, _ = load(root, "recomputed")
    scores = [supervised.read(loaded, examples, backward=True) for examples in (EXAMPLES, EXAMPLES[:1])]
    return [number for score in scores for number in (score.loss, score.accuracy)], gradients(loaded)


def ppo_settings(name: str) -> ResolvedHyperparameters:
    case, advantage = PPO[name]
    changed = {"advantage": advantage, "kl_coefficient": 0.1, "kl_in": "reward", "kl_estimator": "k1"}
    changed |= {"gae_gamma": 0.95, "gae_lambda": 0.9, "critic_learning_rate": 1e-2}
    return hyperparameters(case).model_copy(update=changed)


@dataclass(frozen=True)
class Trained:
    policy: Policy
    optimizer: torch.optim.AdamW
    critic: Critic | None
    reference: Policy


def load_ppo(root: Path, name: str) -> Trained:
    case, advantage = PPO[name]
    loaded, optimizer = load(root, case)
    made = None
    if advantage == "gae":
        model = load_critic(folder_of(root, case), torch.device("cpu"), adapters_of(case))
        if distributed.size() > 1:
            sharding.shard(model)
        made = Critic(model, update.make_optimizer(model, hyperparameters(case)))
    return Trained(loaded, optimizer, made, reference.load(folder_of(root, case), loaded))


def ppo_step(trained: Trained, name: str, number: int) -> update.Numbers:
    h = ppo_settings(name)
    numbers = iter(range(100))
    made = [
        [replace(sample, reward=sample.advantage, number=next(numbers)) for sample in group]
        for group in _in_two(groups())
    ]
    batches = update.plan(made, trained.policy, h)
    old = update.read_old_policy(trained.policy, batches, h)
    batches = reference.read(trained.reference, batches, h)
    batches, told = reference.take_from_rewards(batches, old, made, h)
    if trained.critic is not None:
        batches, estimated = critic.estimate(trained.critic, batches, h)
        told |= estimated | critic.update_critic(trained.critic, batches, h, number)
    return told | update.update_policy(trained.policy, trained.optimizer, batches, old, h, number)


def train_ppo(root: Path, name: str, folder: Path | None = None) -> tuple[list[update.Numbers], dict[str, Tensor]]:
    """The numbers of every step, and the weights at the end; a checkpoint in ``folder``, if it is given."""
    trained = load_ppo(root, name)
    numbers = [ppo_step(trained, name, number) for number in range(1, PPO_STEPS + 1)]
    if folder:
        checkpoint.save(folder, trained.policy, trained.optimizer, TrainerState(PPO_STEPS), critic=trained.critic)
    found = weights(trained.policy)
    if trained.critic is not None:
        kept = state(trained.critic.model, trained.critic.optimizer)
        found |= {f"critic/{key}": tensor for key, tensor in kept.items()}
    return numbers, found


def resume_critic(root: Path, name: str, folder: Path) -> dict[str, Tensor]:
    """The critic's state that the checkpoint in ``folder`` brings back."""
    trained = load_ppo(root, name)
    assert trained.critic is not None
    checkpoint.restore(folder, trained.policy, trained.optimizer, trained.critic)
    kept = state(trained.critic.model, trained.critic.optimizer)
    return {f"critic/{key}": tensor for key, tensor in kept.items()}


class ByLength:
    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        return [Grade(float(len(each.output_text))) for each in samples]


def answers_in_pieces(kept: Path, again: Path | None = None) -> dict[str, Tensor]:
    """Answers that are begun, ``kept`` in a folder, or taken from what ``again`` has, and sampled to the end there."""
    engine = TransformersEngine(tiny.model("qwen3"), (1,), tiny.CONTEXT)
    prompts = [Prompt({}, [5, 6, number]) for number in (7, 8, 9, 10, 11)]
    with ThreadPoolExecutor(1) as thread:
        grading = Grading(ByLength(), AnswerReader(make_tokenizer()), thread=thread)
        collection = Collection(prompts, grading)
        begun = PartialRollouts(collection, 2, [8] * len(collection.prompts), seed=3)
        if again is None:
            partial.sample(engine, [(begun, 3)], 1.0, None)
            unfinished = begun.kept()
            if distributed.rank() == 0:
                kept.mkdir()
                prefetched.write_ahead(kept, 4, {6: unfinished}, engine.version)
        else:
            found = prefetched.read_ahead(again, 4, engine.version)[6]
            begun.restore(distributed.strided_shard(found), grading.reader)
        partial.sample(engine, [(begun, None)], 1.0, None)
        groups = collection.result()
    told = [each for group in groups for each in group]
    ids = [torch.tensor([*each.rollout.token_ids, each.rollout.continued, int(each.reward or 0)]) for each in told]
    return {"answers": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)}


def kept_again_where_one_rank_has_all() -> dict[str, Tensor]:
    """How long answers are, kept and kept again when restored: only those of the second rank are over."""
    engine = TransformersEngine(tiny.model("qwen3"), (1,), tiny.CONTEXT)
    prompts = [Prompt({}, [5, 6, 7]), Prompt({}, [5, 6, 8])]
    with ThreadPoolExecutor(1) as thread:
        grading = Grading(ByLength(), AnswerReader(make_tokenizer()), thread=thread)
        rooms = distributed.strided_shard([8, 3])
        begun, again = (PartialRollouts(Collection(prompts, grading), 2, rooms, seed=3) for _ in range(2))
        partial.sample(engine, [(begun, 3)], 1.0, None)
        unfinished = begun.kept()
        again.restore(distributed.strided_shard(unfinished), grading.reader)
        restored = again.kept()
    return {
        name: torch.tensor([len(each.rollout.token_ids) for group in groups for each in group])
        for name, groups in (("kept", unfinished), ("restored", restored))
    }


def main(root: Path) -> None:
    torch.set_num_threads(1)
    distributed.join()
    results: dict[str, dict[str, Tensor]] = {}
    numbers: dict[str, Any] = {}
    for name in CASES:
        numbers[name], results[f"gradients-{name}"], results[f"weights-{name}"] = train(root, name)
    for name in ("tied", "lora"):
        results[f"saved-{name}"], results[f"after-{name}"] = save_and_go_on(root, name, root / f"by-two-{name}")
        results[f"found-{name}"], results[f"resumed-{name}"] = resume(root, name, root / f"by-one-{name}")
    for name in PPO:
        numbers[name], results[f"weights-{name}"] = train_ppo(root, name, root / f"by-two-{name}")
    results["found-ppo"] = resume_critic(root, "ppo", root / "by-one-ppo")
    numbers["supervised"], results["gradients-supervised"] = supervise(root)
    results["pieces"] = answers_in_pieces(root / "pieces-of-two")
    results["pieces-of-one"] = answers_in_pieces(root, again=root / "pieces-of-one")
    results["kept-again"] = kept_again_where_one_rank_has_all()
    assert all("lora_" in name for name in lora.tensors(load(root, "lora")[0].model))
    if distributed.rank() == 0:
        for name, tensors in results.items():
            save_file(tensors, root / f"{name}.safetensors")
        (root / "numbers.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
