"""The projection's solver against the two that are in use: rows per second, and how far rows end from the bound.

    python -m benchmarks.projection

The others are written here in plain PyTorch, batched over all rows: 24 bisections of the logarithm of the dual variable
(a public re-implementation), and brackets of 8 points for up to 20 rounds over its range of 1e-7 to 1e2, until they are
narrower than 1e-5 (the published code's settings).
"""

import argparse
import math
from collections.abc import Callable

import torch
from torch import Tensor

import troll
from benchmarks import report

BOUND = 0.05
Solver = Callable[[Tensor, Tensor], Tensor]


def make_rows(rows: int, size: int, active: float) -> tuple[Tensor, Tensor]:
    """Old and new log-probabilities `[rows, size]`, of which a fraction of about `active` lies outside the region."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    old = 3 * torch.randn(rows, size, generator=generator, device=device)
    step = torch.randn(rows, size, generator=generator, device=device)
    far = torch.rand(rows, 1, generator=generator, device=device) < active
    new = old + step * torch.where(far, 1.5, 0.1)
    return old.log_softmax(-1), new.log_softmax(-1)


def at_eta(log_old: Tensor, log_new: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    """The geodesic's row and its KL to the old policy, for `eta` `[M, 1]`."""
    log_pi = ((eta * log_old + log_new) / (1 + eta)).log_softmax(-1)
    return log_pi, (log_pi.exp() * (log_pi - log_old)).sum(-1)


def bisect(log_old: Tensor, log_new: Tensor) -> Tensor:
    """24 bisections of log eta on [-8, 10]."""
    inside = (log_new.exp() * (log_new - log_old)).sum(-1, keepdim=True) <= BOUND
    low = torch.full_like(log_old[:, :1], -8.0)
    high = torch.full_like(low, 10.0)
    for _ in range(24):
        middle = 0.5 * (low + high)
        above = at_eta(log_old, log_new, middle.exp())[1].unsqueeze(-1) > BOUND
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(inside, log_new, at_eta(log_old, log_new, high.exp())[0])


def bracket(log_old: Tensor, log_new: Tensor) -> Tensor:
    """8 points between the ends of each row's bracket, up to 20 times."""
    inside = (log_new.exp() * (log_new - log_old)).sum(-1, keepdim=True) <= BOUND
    low = torch.full_like(log_old[:, :1], 1e-7)
    high = torch.full_like(low, 1e2)
    parts = torch.linspace(0, 1, 8, device=low.device)
    for _ in range(20):
        points = low + (high - low) * parts
        kl = torch.stack([at_eta(log_old, log_new, points[:, i : i + 1])[1] for i in range(8)], -1)
        last_above = ((kl > BOUND).sum(-1, keepdim=True) - 1).clamp(0, 6)
        low, high = points.gather(1, last_above), points.gather(1, last_above + 1)
        if (high - low).max() < 1e-5:
            break
    return torch.where(inside, log_new, at_eta(log_old, log_new, high)[0])


def ours(log_old: Tensor, log_new: Tensor) -> Tensor:
    return troll.project(log_old, log_new, BOUND).log_probs


SOLVERS: dict[str, Solver] = {"`troll.project`": ours, "24 bisections": bisect, "8 points, up to 20 rounds": bracket}


def compare(rows: int, size: int, active: float, rounds: int) -> list[list[str]]:
    """One line of the table per solver."""
    log_old, log_new = make_rows(rows, size, active)
    fraction = troll.project(log_old, log_new, BOUND).active.float().mean().item()
    times = report.best_times({name: lambda s=s: s(log_old, log_new) for name, s in SOLVERS.items()}, rounds)
    lines = []
    for name, solver in SOLVERS.items():
        log_pi = solver(log_old, log_new).double()
        kl = (log_pi.exp() * (log_pi - log_old.double())).sum(-1)
        outside = (log_new.double().exp() * (log_new.double() - log_old.double())).sum(-1) > BOUND
        gap = (BOUND - kl[outside]).max().item() if outside.any() else 0.0
        lines.append(
            [
                name,
                f"{fraction:.0%}",
                f"{rows / times[name]:,.0f}",
                f"{times[name] / times['`troll.project`']:.1f}",
                f"{max(kl.max().item() - BOUND, 0.0):.1e}",
                f"{max(gap, 0.0):.1e}",
            ]
        )
    return lines


def far_rows() -> str:
    """Rows whose dual variable lies beyond 100."""
    log_old = torch.tensor([[16.0, 0, 0, 0], [30.0, 0, -3, 1]]).log_softmax(-1)
    log_new = torch.tensor([[-9000.0, 9, 3, 0], [-9000.0, 0, 5, 40]]).log_softmax(-1)
    eta = 1 / troll.project(log_old, log_new, BOUND).beta - 1
    worst = []
    for name, solver in SOLVERS.items():
        log_pi = solver(log_old, log_new).double()
        kl = torch.where(log_pi > -math.inf, log_pi.exp() * (log_pi - log_old.double()), 0.0).sum(-1)
        worst.append(f"{name} {kl.max().item():.4f}")
    return (
        f"On two rows whose dual variable is {eta[0]:,.0f} and {eta[1]:,.0f} (a confident old policy, a new one far away) "
        f"the largest KL after the projection is: {', '.join(worst)}; the bound is {BOUND}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--size", type=int, default=131, help="slots of a row: two supports of 65 tokens, and the tail")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    lines = [
        line for active in (0.1, 0.5, 1.0) for line in compare(arguments.rows, arguments.size, active, arguments.rounds)
    ]
    header = ["solver", "rows projected", "rows per second", "x our time", "KL above bound", "KL short of bound"]
    setting = (
        f"`python -m benchmarks.projection`: {arguments.rows:,} rows of {arguments.size} slots, float32, forward, best of "
        f"{arguments.rounds} alternating runs. {report.machine()}. KL is measured in float64."
    )
    report.write_section("projection", "The projection", f"{setting}\n\n{report.table(header, lines)}\n\n{far_rows()}")


if __name__ == "__main__":
    main()
