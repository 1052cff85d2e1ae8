"""Draws docs/figures/simplex.svg: one projection onto the trust region, on the simplex of three tokens.

    python docs/figures/simplex.py

Needs matplotlib. The numbers are `troll.project`'s, at a bound of 0.05 nats.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

import troll

BOUND = 0.05
OLD = torch.tensor([0.48, 0.32, 0.20], dtype=torch.float64)
NEW = torch.tensor([0.08, 0.40, 0.52], dtype=torch.float64)
CORNERS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]], dtype=torch.float64)
INK, MUTED, BLUE, RED, GREEN = "#1f2328", "#8b949e", "#0969da", "#cf222e", "#1a7f37"


def plane(probabilities: Tensor) -> Tensor:
    """Points `[..., 2]` of the drawing from distributions `[..., 3]`."""
    return probabilities @ CORNERS


def divergence_to(reference: Tensor, grid: Tensor) -> Tensor:
    """`KL(grid || reference)` of distributions `[..., 3]`."""
    return (grid * (grid.log() - reference.log())).sum(-1)


def simplex_grid(size: int) -> Tensor:
    """Distributions `[M, 3]` on a triangular grid, just inside the edges."""
    steps = torch.linspace(0, 1, size, dtype=torch.float64)
    first, second = torch.meshgrid(steps, steps, indexing="ij")
    inside = first + second <= 1
    points = torch.stack([first[inside], second[inside], 1 - first[inside] - second[inside]], -1)
    points = points.clamp(min=1e-9)
    return points / points.sum(-1, keepdim=True)


def mark(axes: Axes, point: Tensor, label: str, colour: str, offset: tuple[float, float]) -> None:
    """A dot and its name."""
    x, y = plane(point).tolist()
    axes.plot(x, y, "o", color=colour, markersize=6, zorder=5)
    axes.annotate(label, (x, y), xytext=offset, textcoords="offset points", color=colour, fontsize=11)


def draw(axes: Axes) -> None:
    """The triangle, the region, the geodesic, and the three policies."""
    grid = simplex_grid(400)
    x, y = plane(grid).T.numpy()
    result = troll.project(OLD.log(), NEW.log(), BOUND)
    projected = result.log_probs.exp()
    reached = divergence_to(NEW, projected).item()

    axes.add_patch(plt.Polygon(CORNERS.numpy(), closed=True, fill=False, edgecolor=INK, linewidth=1.2))
    axes.tricontourf(x, y, divergence_to(OLD, grid).numpy(), levels=[-1.0, BOUND], colors=[BLUE], alpha=0.12)
    axes.tricontour(x, y, divergence_to(OLD, grid).numpy(), levels=[BOUND], colors=[BLUE], linewidths=1.4)
    levels = [0.25 * reached, reached]
    axes.tricontour(
        x, y, divergence_to(NEW, grid).numpy(), levels=levels, colors=[RED], linewidths=0.8, linestyles="--"
    )

    beta = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    path = plane(((1 - beta) * OLD.log() + beta * NEW.log()).softmax(-1))
    axes.plot(*path.T.numpy(), color=MUTED, linewidth=1.4, zorder=3)
    mark(axes, OLD, "old", BLUE, (-10, -17))
    mark(axes, NEW, "new", RED, (-32, 2))
    mark(axes, projected, "projected", GREEN, (-62, 13))
    for corner, name, shift in zip(
        CORNERS, ("token 1", "token 2", "token 3"), ((-12, -15), (-32, -15), (-22, 7)), strict=True
    ):
        axes.annotate(name, corner.tolist(), xytext=shift, textcoords="offset points", color=INK, fontsize=10)
    words = (
        f"shaded: KL(· ‖ old) ≤ {BOUND} nats\ndashed: KL(· ‖ new) constant\ngrey: the geodesic\n"
        f"β = {result.beta.item():.2f}, η = {1 / result.beta.item() - 1:.2f}"
    )
    axes.annotate(words, (-0.05, 0.86), va="top", color=INK, fontsize=9, linespacing=1.5)


def main() -> None:
    plt.rcParams["svg.hashsalt"] = "simplex"
    figure, axes = plt.subplots(figsize=(6.4, 5.4))
    draw(axes)
    axes.set_aspect("equal")
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(-0.07, 0.95)
    axes.axis("off")
    target = Path(__file__).with_suffix(".svg")
    figure.savefig(target, bbox_inches="tight", metadata={"Date": None})
    print(target)


if __name__ == "__main__":
    main()
