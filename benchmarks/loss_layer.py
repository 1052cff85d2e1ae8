"""The loss layer, forward and backward, side by side: time and memory of TROLL, of clipping, and of Liger's GRPO loss.

    python -m benchmarks.loss_layer            # the CPU shape, or the GPU's where there is one
    python -m benchmarks.loss_layer --parts memory --rows flat

The layer is the output matrix and the loss on it. Every hidden state leans towards a dozen tokens, whose logits fall off
from well above the rest, so that a row keeps about as many tokens as a language model's does; the new policy has moved a
little from the old one. The other extreme is flat rows, where the cap of 64 tokens cuts off almost all of the mass.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import troll
from benchmarks import report

MODULE = "benchmarks.loss_layer"
SEQUENCES = 4


@dataclass(frozen=True)
class Layer:
    """The tensors every method gets."""

    hidden: Tensor
    """`[N, H]`, wants its gradient."""
    weight: Tensor
    """`[V, H]`, wants its gradient."""
    old_hidden: Tensor
    tokens: Tensor
    advantages: Tensor
    old: troll.SparseLogProbs

    @property
    def gradient_bytes(self) -> int:
        """Size of the weight's gradient, which every method has to write."""
        return self.weight.numel() * self.weight.element_size()


def make_layer(tokens: int, hidden_size: int, vocabulary: int, flat: bool) -> Layer:
    """A layer on the GPU in bfloat16, or on the CPU in float32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    weight = normal(vocabulary, hidden_size).mul_(hidden_size**-0.5)
    old_hidden = normal(tokens, hidden_size)
    if not flat:
        favoured = torch.randint(vocabulary, (tokens, 12), generator=generator, device=device)
        heights = 28 + 2 * normal(tokens, 1) - 1.3 * torch.arange(12, device=device)
        old_hidden += torch.einsum("nk,nkh->nh", heights, weight[favoured])
    moved = 0.02 if flat else 0.3
    hidden = (old_hidden + moved * normal(tokens, hidden_size)).to(dtype).requires_grad_()
    old_hidden, weight = old_hidden.to(dtype), weight.to(dtype).requires_grad_()
    with torch.no_grad():
        sampled = torch.cat([_sample(part @ weight.T, generator) for part in old_hidden.split(64)])
    old = troll.fused_sparsify(old_hidden, weight, sampled)
    advantages = normal(SEQUENCES).repeat_interleave(tokens // SEQUENCES)
    return Layer(hidden, weight, old_hidden, sampled, advantages, old)


def _sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.rand(logits.shape, generator=generator, device=logits.device)
    return (logits.float() - noise.log_().neg_().log_()).argmax(-1)


def dense_clip(layer: Layer) -> Tensor:
    """PPO clipping as a training loop writes it: logits, log-sum-exp, autograd."""
    logits = (layer.hidden @ layer.weight.T).float()
    log_probs = logits.gather(1, layer.tokens[:, None]).squeeze(1) - logits.logsumexp(-1)
    ratio = (log_probs - layer.old.token_log_probs).exp()
    return -torch.minimum(ratio * layer.advantages, ratio.clamp(0.8, 1.2) * layer.advantages).mean()


def liger(layer: Layer) -> Tensor:
    """Liger's chunked GRPO loss, one sequence a chunk (its default), not compiled on a CPU."""
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, compiled=layer.hidden.is_cuda, chunk_size=1)
    shape = (SEQUENCES, -1)
    result, _ = loss(
        layer.hidden.view(*shape, layer.hidden.shape[1]),
        layer.weight,
        layer.tokens.view(shape),
        torch.ones_like(layer.tokens).view(shape),
        layer.advantages.view(shape)[:, 0],
        old_per_token_logps=layer.old.token_log_probs.view(shape),
    )
    return result


def plain(objective: troll.Objective[Any]) -> Callable[[Layer], Tensor]:
    """A loss of the package, from logits."""
    return lambda x: objective.loss(x.hidden @ x.weight.T, x.old, x.tokens, x.advantages).loss


def fused(objective: troll.Objective[Any]) -> Callable[[Layer], Tensor]:
    """A loss of the package, from hidden states."""
    return lambda x: objective.fused_loss(x.hidden, x.weight, x.old, x.tokens, x.advantages).loss


METHODS: dict[str, Callable[[Layer], Tensor]] = {
    "PPO clip, dense": dense_clip,
    "PPO clip, `Clip().loss`": plain(troll.Clip()),
    "PPO clip, `Clip().fused_loss`": fused(troll.Clip()),
    "GRPO clip, Liger chunked": liger,
    "TROLL, `Troll().loss`": plain(troll.Troll()),
    "TROLL, `Troll().fused_loss`": fused(troll.Troll()),
    "TROLL, fused, old support": fused(troll.Troll(support="old")),
    "TROLL, fused, dense backward": fused(troll.Troll(backward="dense")),
}
BASE, LIGER, OURS = "PPO clip, dense", "GRPO clip, Liger chunked", "TROLL, `Troll().fused_loss`"


def step(method: Callable[[Layer], Tensor], layer: Layer) -> None:
    """Loss and gradients, which are let go of at once."""
    method(layer).backward()
    layer.hidden.grad = layer.weight.grad = None


def memory(shape: tuple[int, int, int], flat: bool, name: str) -> float:
    """Peak bytes beyond the weight's gradient, in a process of its own."""
    arguments = ["--memory", name, *(["--flat"] if flat else []), "--shape", *map(str, shape)]
    return report.in_fresh_process(MODULE, arguments)["bytes"]


def compare(shape: tuple[int, int, int], flat: bool, rounds: int) -> str:
    """The table of one kind of rows, and what they are like."""
    layer = make_layer(*shape, flat)
    times = report.best_times({name: lambda m=m: step(m, layer) for name, m in METHODS.items()}, rounds)
    rows = [
        [
            name,
            f"{times[name]:.3f}",
            f"{times[name] / times[BASE]:.2f}",
            f"{times[name] / times[LIGER]:.2f}",
        ]
        for name in METHODS
    ]
    header = ["loss layer", "seconds", "x dense clip", "x Liger"]
    metrics = troll.Troll().fused_loss(layer.hidden, layer.weight, layer.old, layer.tokens, layer.advantages).metrics
    words = (
        f"{'Flat' if flat else 'Peaked'} rows: {metrics['kept_tokens']:.1f} tokens kept of {shape[2]:,} "
        f"({metrics['kept_mass']:.4f} of the mass), {metrics['fraction_projected']:.0%} of the tokens projected, "
        f"entropy {metrics['entropy']:.2f} nats."
    )
    return f"{words}\n\n{report.table(header, rows)}"


def compare_memory(shape: tuple[int, int, int], rows: Sequence[str]) -> str:
    """Peak memory of every method beyond the weight's gradient, one process each."""
    header, lines = ["loss layer"], {name: [name] for name in METHODS}
    for kind in rows:
        peaks = {name: memory(shape, kind == "flat", name) for name in METHODS}
        header += [f"{kind} rows, MB beyond dW", "x dense clip"]
        for name, line in lines.items():
            line += [f"{peaks[name] / 1e6:.0f}", f"{peaks[name] / peaks[BASE]:.2f}"]
    return report.table(header, list(lines.values()))


def old_pass(shape: tuple[int, int, int], rounds: int) -> str:
    """What the pass that records the old policy costs."""
    x = make_layer(*shape, flat=False)

    @torch.no_grad()
    def dense() -> Tensor:
        logits = (x.old_hidden @ x.weight.T).float()
        return logits.gather(1, x.tokens[:, None]).squeeze(1) - logits.logsumexp(-1)

    runs = {
        "log-probabilities, dense": dense,
        "`troll.fused_sparsify`": lambda: troll.fused_sparsify(x.old_hidden, x.weight, x.tokens),
    }
    times = report.best_times(runs, rounds)
    first = next(iter(runs))
    rows = [[name, f"{time:.3f}", f"{time / times[first]:.2f}"] for name, time in times.items()]
    return report.table(["the old policy's pass (forward only)", "seconds", "x dense"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    gpu = torch.cuda.is_available()
    parser.add_argument("--shape", type=int, nargs=3, default=(8192, 4096, 151_936) if gpu else (512, 1024, 151_936))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--parts", choices=("time", "memory"), nargs="+", default=("time", "memory"))
    parser.add_argument("--rows", choices=("peaked", "flat"), nargs="+", default=("peaked", "flat"))
    parser.add_argument("--flat", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shape = tuple(arguments.shape)
    if arguments.memory:
        layer = make_layer(*shape, arguments.flat)
        peak = report.peak_bytes(lambda: step(METHODS[arguments.memory], layer))
        print(json.dumps({"bytes": peak - layer.gradient_bytes}))
        return
    tokens, hidden_size, vocabulary = shape
    setting = (
        f"{tokens:,} tokens in {SEQUENCES} sequences, hidden size {hidden_size:,}, vocabulary "
        f"{vocabulary:,}, {'bfloat16' if gpu else 'float32'}. {report.machine(('torch', 'liger-kernel'))}."
    )
    if "time" in arguments.parts:
        tables = [compare(shape, rows == "flat", arguments.rounds) for rows in arguments.rows]
        start = f"`python -m {MODULE} --parts time`: {setting} Best of {arguments.rounds} alternating runs."
        body = "\n\n".join([start, *tables, old_pass(shape, arguments.rounds)])
        report.write_section("loss-layer", "The loss layer", body)
    if "memory" in arguments.parts:
        start = (
            f"`python -m {MODULE} --parts memory --rows {' '.join(arguments.rows)}`: {setting} Peak memory of a step beyond "
            f"`dW`, the output matrix's gradient ({vocabulary * hidden_size * (2 if gpu else 4) / 1e6:.0f} MB), which every "
            f"method writes."
        )
        table = compare_memory(shape, arguments.rows)
        report.write_section("loss-layer-memory", "The loss layer's memory", f"{start}\n\n{table}")


if __name__ == "__main__":
    main()
