"""Which tokens a sparse row keeps, and what the rest gets: time, memory, gradient error, leaked mass and learning.

    python -m benchmarks.support

Time and memory are those of the loss layer at a language model's size (`benchmarks.loss_layer`). The rest comes from a
training run small enough to hold every row densely: prompts of 8 positions over 1,024 tokens, a base policy that falls
off like a language model's, and a reward for tokens some of which the base policy all but rules out. Every choice is
trained from the same start on its own rollouts; at every fifth rollout, half way through the updates, its gradient is
compared with the one that drops nothing.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import troll
from benchmarks import loss_layer, report
from troll import advantages

MODULE = "benchmarks.support"
VOCABULARY, PROMPTS, POSITIONS, GROUP, UPDATES = 1024, 4, 8, 16, 8
COMPARE_EVERY = 5
DENSE = {"max_tokens": VOCABULARY, "dropped_mass": 0.0}


@dataclass(frozen=True)
class Choice:
    """Options for the old policy's rows and for the loss."""

    rows: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    backward: str = "sparse"


CHOICES = {
    "top of both, tail 1e-12 (paper)": Choice(),
    "same, dense backward": Choice(backward="dense"),
    "same, old rows keep 8 spare tokens": Choice({"spare_tokens": 8}),
    "same, tail at its true mass": Choice({"tail": "mass"}, {"tail": "mass"}),
    "old policy's top, tail 1e-12": Choice(loss={"support": "old"}),
    "old policy's top, tail at its true mass": Choice({"tail": "mass"}, {"support": "old", "tail": "mass"}),
}
NOTHING_DROPPED = "nothing dropped"


class Task:
    """A tabular task: one row of logits per prompt and position, shared factors on top of a fixed base."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        rank = torch.stack([torch.randperm(VOCABULARY, generator=generator) for _ in range(PROMPTS * POSITIONS)])
        height = -1.1 * rank.float().add(1).log() ** 1.5 * (0.6 + 0.8 * torch.rand(len(rank), 1, generator=generator))
        self.base = height.view(PROMPTS, POSITIONS, VOCABULARY)
        wanted = torch.randint(2, 40, (len(rank), 2), generator=generator)
        self.good = (rank.unsqueeze(-1) == wanted.unsqueeze(1)).any(-1).view_as(self.base)
        self.factors = 0.1 * torch.randn(PROMPTS, POSITIONS, 32, generator=generator)
        self.weight = 0.1 * torch.randn(VOCABULARY, 32, generator=generator)
        self.generator = generator

    def parameters(self) -> tuple[Tensor, Tensor]:
        return self.factors.clone().requires_grad_(), self.weight.clone().requires_grad_()

    def logits(self, parameters: tuple[Tensor, Tensor]) -> Tensor:
        """`[PROMPTS, POSITIONS, V]`"""
        factors, weight = parameters
        return self.base + factors @ weight.T

    def roll_out(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and advantages `[PROMPTS * GROUP, POSITIONS]`, and the mean reward."""
        rows = logits.repeat_interleave(GROUP, 0)
        noise = torch.rand(rows.shape, generator=self.generator).log_().neg_().log_()
        tokens = (rows - noise).argmax(-1)
        reward = self.good.repeat_interleave(GROUP, 0).gather(-1, tokens.unsqueeze(-1)).squeeze(-1).float().mean(-1)
        groups = torch.arange(PROMPTS).repeat_interleave(GROUP)
        return tokens, advantages.grpo(reward, groups), reward.mean()


def outside(logits: Tensor, old_ids: Tensor, support: str) -> Tensor:
    """Mass `[M]` of the new policy on tokens that no row of the pair keeps."""
    log_probs = logits.log_softmax(-1)
    inside = torch.zeros_like(log_probs, dtype=torch.bool)
    inside = inside.scatter(-1, old_ids.clamp(min=0).long(), old_ids >= 0)
    if support == "union":
        values, ids = log_probs.topk(64, -1)
        mass = values.exp()
        inside = inside.scatter(-1, ids, inside.gather(-1, ids) | (mass.cumsum(-1) - mass < 1 - 1e-5))
    return log_probs.exp().masked_fill(inside, 0.0).sum(-1)


def gradient(task: Task, parameters: tuple[Tensor, Tensor], loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The flat gradient of a loss of the group's logits."""
    found = torch.autograd.grad(loss(task.logits(parameters).repeat_interleave(GROUP, 0)), parameters)
    return torch.cat([part.flatten() for part in found])


def train(name: str, seed: int, rollouts: int, rate: float) -> dict[str, float]:
    """One training run; what it learnt, and how far its sparse rows were from dense ones on the way."""
    task = Task(seed)
    parameters = task.parameters()
    optimiser = torch.optim.Adam(parameters, rate)
    choice = CHOICES.get(name, Choice(DENSE, DENSE))
    totals: dict[str, list[float]] = {
        key: [] for key in ("reward", "leak", "error", "length", "kl", "projected", "entropy")
    }
    for rollout in range(rollouts):
        with torch.no_grad():
            old_logits = task.logits(parameters)
            tokens, advantage, reward = task.roll_out(old_logits)
            rows = old_logits.repeat_interleave(GROUP, 0)
            old, dense_old = troll.sparsify(rows, tokens, **choice.rows), troll.sparsify(rows, tokens, **DENSE)
        totals["reward"].append(reward.item())

        def ours(logits: Tensor) -> troll.LossOutput:
            return troll.Troll(**choice.loss).loss(logits, old, tokens, advantage)

        def dense(logits: Tensor) -> troll.LossOutput:
            return troll.Troll(**DENSE).loss(logits, dense_old, tokens, advantage)

        for update in range(UPDATES):
            if update == UPDATES // 2 and rollout % COMPARE_EVERY == 0:
                exact = gradient(task, parameters, lambda z: dense(z).loss)
                got = gradient(task, parameters, lambda z: ours(z).loss)
                totals["error"].append((got - exact).square().sum().item())
                totals["length"].append(exact.square().sum().item())
                with torch.no_grad():
                    new = task.logits(parameters).repeat_interleave(GROUP, 0)
                    metrics, reference = ours(new).metrics, dense(new).metrics
                    totals["kl"].append((metrics["kl_before"] - reference["kl_before"]).item())
                    totals["projected"].append((metrics["fraction_projected"] - reference["fraction_projected"]).item())
                    totals["leak"].append(outside(new, old.ids, choice.loss.get("support", "union")).mean().item())
                    totals["entropy"].append(metrics["entropy"].item())
            optimiser.zero_grad()
            ours(task.logits(parameters).repeat_interleave(GROUP, 0)).loss.backward()
            optimiser.step()
    mean = {key: sum(values) / len(values) for key, values in totals.items()}
    mean["gradient"] = (mean["error"] / mean["length"]) ** 0.5
    ends = {key: values[-max(1, len(values) // 10) :] for key, values in totals.items()}
    last = {f"last_{key}": sum(values) / len(values) for key, values in ends.items()}
    return mean | last


def layer_loss(choice: Choice) -> Callable[[loss_layer.Layer], Tensor]:
    """The choice's loss of `benchmarks.loss_layer`'s layer; its old rows are made once, outside the measurement."""
    objective = troll.Troll(backward=choice.backward, **choice.loss)
    made: dict[int, troll.SparseLogProbs] = {}

    def loss(x: loss_layer.Layer) -> Tensor:
        if id(x) not in made:
            made[id(x)] = troll.fused_sparsify(x.old_hidden, x.weight, x.tokens, **choice.rows)
        return objective.fused_loss(x.hidden, x.weight, made[id(x)], x.tokens, x.advantages).loss

    return loss


def layer_memory(shape: tuple[int, ...], name: str) -> float:
    """Peak bytes beyond the weight's gradient, in a process of its own."""
    return report.in_fresh_process(MODULE, ["--memory", name, "--shape", *map(str, shape)])["bytes"]


def write_cost(shape: tuple[int, ...], rounds: int) -> None:
    """Time and memory of the loss layer with each choice."""
    layer = loss_layer.make_layer(*shape, flat=False)
    losses = {name: layer_loss(choice) for name, choice in CHOICES.items()}
    times = report.best_times({name: lambda f=f: loss_layer.step(f, layer) for name, f in losses.items()}, rounds)
    lines = [[name, f"{times[name]:.3f}", f"{layer_memory(shape, name) / 1e6:.0f}"] for name in CHOICES]
    setting = (
        f"`python -m {MODULE} --parts cost`: layer of {shape[0]:,} tokens, hidden size {shape[1]:,}, vocabulary {shape[2]:,}, "
        f"peaked rows, forward and backward, best of {rounds} alternating runs. {report.machine()}. `dW` is the output "
        f"matrix's gradient, which every method writes."
    )
    table = report.table(["support and tail", "seconds", "MB beyond dW"], lines)
    report.write_section("support-cost", "Support and tail of the sparse rows: cost", f"{setting}\n\n{table}")


def write_training(rollouts: int, seeds: int, rate: float) -> None:
    """What each choice learns, and how far it is from dropping nothing."""
    lines = []
    for name in (*CHOICES, NOTHING_DROPPED):
        results = [train(name, seed, rollouts, rate) for seed in range(seeds)]
        mean = {key: sum(result[key] for result in results) / len(results) for key in results[0]}
        rewards = [result["last_reward"] for result in results]
        lines.append(
            [
                name,
                f"{mean['gradient']:.1e}",
                f"{mean['kl']:+.1e}",
                f"{mean['projected']:+.1%}",
                f"{mean['leak']:.1e}",
                f"{mean['last_leak']:.1e}",
                f"{mean['last_reward']:.3f} ± {(max(rewards) - min(rewards)) / 2:.3f}",
                f"{mean['last_entropy']:.2f}",
            ]
        )
    header = [
        "support and tail",
        "gradient error",
        "KL error, nats",
        "projected too often",
        "mass outside",
        "at the end",
        "final reward",
        "entropy",
    ]
    setting = (
        f"`python -m {MODULE} --parts training`: {rollouts} rollouts of {UPDATES} updates, means over {seeds} seeds (± half the "
        f"range). Errors are against the same loss with nothing dropped, in the middle of each rollout's updates: the "
        f"gradient's distance over its length (root mean squares), the mean excess of the sparse KL before the projection, "
        f"and of the fraction projected. Mass outside is what the new policy puts on tokens that neither row keeps."
    )
    title = "Support and tail of the sparse rows: learning"
    report.write_section("support-training", title, f"{setting}\n\n{report.table(header, lines)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--shape", type=int, nargs=3, default=(8192, 4096, 151_936) if gpu else (512, 1024, 151_936))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--parts", choices=("cost", "training"), nargs="+", default=("cost", "training"))
    parser.add_argument("--memory", choices=CHOICES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = tuple(arguments.shape)
    if arguments.memory:
        layer, loss = loss_layer.make_layer(*shape, flat=False), layer_loss(CHOICES[arguments.memory])
        peak = report.peak_bytes(lambda: loss_layer.step(loss, layer))
        print(json.dumps({"bytes": peak - layer.gradient_bytes}))
        return
    if "cost" in arguments.parts:
        write_cost(shape, arguments.rounds)
    if "training" in arguments.parts:
        write_training(arguments.rollouts, arguments.seeds, arguments.rate)


if __name__ == "__main__":
    main()
