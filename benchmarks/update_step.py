"""One optimizer update of a model shaped like Qwen3-0.6B through the trainer's own code: TROLL against fused clipping.

    python -m benchmarks.update_step [--lora] [--layers 28] [--rounds 3]     # on a CPU 8 layers unless told otherwise

The model has random weights and Qwen3-0.6B's shape. Its last norm is scaled so that a row's distribution is peaked, as a
language model's is. It samples answers to a few random prompts; an update reads them, computes the objective,
goes back through all layers and takes a step of AdamW. Both objectives get the same model, samples and old policy, and
take turns in one process; memory is measured in a process for each.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import report
from service.jobs.hyperparameters.option import resolve
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from troll import SparseLogProbs
from workers.modeling import policy
from workers.modeling.lora import Lora
from workers.modeling.policy import Policy
from workers.modeling.recomputation import When
from workers.rollouts.engine import Rollout, Sampling
from workers.rollouts.transformers import TransformersEngine
from workers.training.data.batch import TrainingSample
from workers.training.optim import update
from workers.training.optim.update import MiniBatch

MODULE = "benchmarks.update_step"
OBJECTIVES = {"clip": "PPO clip, fused", "troll": "TROLL, fused"}
PROMPTS, GROUP, PROMPT_TOKENS, ANSWER_TOKENS = 2, 4, 32, 32
VOCABULARY, PEAKEDNESS = 151_936, 13.0
ADAPTERS = Lora(rank=32, alpha=32, seed=0, base="base")


def save_model(folder: Path, layers: int) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from workers import demo

    torch.manual_seed(0)
    tokenizer = demo.make_tokenizer()
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.model.norm.weight.fill_(PEAKEDNESS)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_samples(folder: Path) -> None:
    """Answers of full length that the model itself gives."""
    loaded = policy.load(folder, device())
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(100, VOCABULARY, (PROMPTS, PROMPT_TOKENS), generator=generator).tolist()
    engine = TransformersEngine(loaded.model, [], loaded.context_length)
    groups = engine.generate(prompts, GROUP, Sampling(1.0, ANSWER_TOKENS, seed=1))
    rows = [
        [prompt, [[r.token_ids, r.log_probs] for r in group]] for prompt, group in zip(prompts, groups, strict=True)
    ]
    (folder / "samples.json").write_text(json.dumps(rows))


def read_samples(folder: Path) -> list[list[TrainingSample]]:
    advantages = (1.5, -0.5, -1.25, 0.25)
    return [
        [
            TrainingSample(prompt, Rollout(ids, log_probs, "length"), advantage)
            for (ids, log_probs), advantage in zip(group, advantages, strict=True)
        ]
        for prompt, group in json.loads((folder / "samples.json").read_text())
    ]


class Step:
    """A model, its optimizer and one mini-batch, ready to be updated again and again."""

    def __init__(self, folder: Path, lora: bool, recompute: When = "never") -> None:
        self.settings = {name: hyperparameters(name) for name in OBJECTIVES}
        self.policy: Policy = policy.load(folder, device(), ADAPTERS if lora else None, recompute=recompute)
        self.optimizer = update.make_optimizer(self.policy, self.settings["troll"])
        groups = read_samples(folder)
        self.batches: list[MiniBatch] = update.plan(groups, self.policy, self.settings["troll"])
        self.old = self.read_old_policy()

    def read_old_policy(self) -> list[list[SparseLogProbs]]:
        return update.read_old_policy(self.policy, self.batches, self.settings["troll"])

    def run(self, objective: str) -> dict[str, float]:
        """One update, and its numbers."""
        h = self.settings[objective]
        return update.update_policy(self.policy, self.optimizer, self.batches, self.old, h, step=1)

    @property
    def trained(self) -> list[Tensor]:
        return [parameter for parameter in self.policy.model.parameters() if parameter.requires_grad]


def hyperparameters(objective: str) -> ResolvedHyperparameters:
    wanted: dict[str, Any] = {"objective": objective, "mini_batches": 1, "learning_rate": 1e-5}
    return resolve(Hyperparameters.model_validate(wanted), training_rows=PROMPTS)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def memory(folder: Path, lora: bool, objective: str) -> dict[str, float]:
    """Peak bytes that an update adds to weights and optimizer state, and the bytes of its gradients."""
    step = Step(folder, lora)

    def run() -> None:
        step.run(objective)
        step.optimizer.zero_grad(set_to_none=True)

    gradients = sum(parameter.numel() * parameter.element_size() for parameter in step.trained)
    return {"bytes": float(report.peak_bytes(run)), "gradients": float(gradients)}


def compare(folder: Path, layers: int, lora: bool, rounds: int) -> None:
    arguments = ["--folder", str(folder), *(["--lora"] if lora else [])]
    peaks = {name: report.in_fresh_process(MODULE, [*arguments, "--memory", name]) for name in OBJECTIVES}
    step = Step(folder, lora)
    times = report.best_times({name: lambda n=name: step.run(n) for name in OBJECTIVES}, rounds)
    numbers = step.run("troll")
    gradients = peaks["clip"]["gradients"]
    rows = [
        [
            title,
            f"{times[name]:.2f}",
            f"{times[name] / times['clip']:.2f}",
            f"{peaks[name]['bytes'] / 1e6:,.0f}",
            f"{peaks[name]['bytes'] / peaks['clip']['bytes']:.2f}",
            f"{(peaks[name]['bytes'] - gradients) / (peaks['clip']['bytes'] - gradients):.2f}",
        ]
        for name, title in OBJECTIVES.items()
    ]
    header = ["objective", "seconds", "x clip", "MB added", "x clip", "x clip, without gradients"]
    what = "LoRA of rank 32 on every layer, the output matrix frozen" if lora else "all weights trained"
    tokens = sum(len(part.tokens) for batch in step.batches for part in batch.parts)
    words = (
        f"`python -m {MODULE}{' --lora' if lora else ''}`: {layers} of 28 layers, hidden size 1,024, vocabulary {VOCABULARY:,}, "
        f"{what}; {PROMPTS} prompts of {PROMPT_TOKENS} tokens, {GROUP} answers of {ANSWER_TOKENS} tokens to each "
        f"({tokens} response tokens). Best of {rounds} alternating runs. {report.machine(('torch', 'transformers'))}. "
        "Memory is what an update adds to the weights and AdamW's moments at its peak; "
        f"the gradients of the trained weights are {gradients / 1e6:,.0f} MB of it for either objective. Neither holds "
        "logits. The embeddings are tied to the output matrix: at its peak clipping holds the gradients of both uses, "
        "TROLL that of the embeddings and the few rows that its loss layer touches. Fewer layers than the model's flatter "
        "TROLL, whose gain is in the output matrix.\n\n"
        f"TROLL keeps {numbers['kept_tokens']:.1f} tokens a row ({numbers['kept_mass']:.5f} of the mass), "
        f"entropy {numbers['entropy']:.2f} nats, {numbers['fraction_projected']:.0%} of the tokens projected."
    )
    name, title = ("update-step-lora", "The update step, LoRA") if lora else ("update-step", "The update step")
    report.write_section(name, title, f"{words}\n\n{report.table(header, rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--layers", type=int, default=28 if torch.cuda.is_available() else 8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=OBJECTIVES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        print(json.dumps(memory(given.folder, given.lora, given.memory)))
        return
    with tempfile.TemporaryDirectory(prefix="troll-bench-") as name:
        folder = Path(name) / "model"
        save_model(folder, given.layers)
        write_samples(folder)
        compare(folder, given.layers, given.lora, given.rounds)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
