"""Draws the runs of a task: one panel for each number, one line for each objective."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.study.summary import Cell

PANELS = {
    "train_reward": "training reward",
    "entropy": "entropy, nats",
    "kl": "KL to the old policy",
    "held_back": "share of tokens held back",
    "grad_norm": "gradient norm",
}


def draw(path: Path, of_objectives: dict[str, Cell]) -> None:
    """An SVG; the same bytes for the same numbers."""
    # Text stays text, and ids are the same every time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "study", "font.size": 8}):
        figure = Figure(figsize=(3 * len(PANELS), 2.6), layout="constrained")
        axes = figure.subplots(1, len(PANELS))
        for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
            for objective, cell in of_objectives.items():
                steps, values = curves(cell, name)
                if values.size:
                    (line,) = axis.plot(steps, values.mean(0), label=objective)
                    axis.fill_between(
                        steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0
                    )
            axis.set_title(title)
            axis.set_xlabel("step")
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].legend(frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def curves(cell: Cell, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps ``[T]`` at which every seed has the number, and its values ``[seeds, T]``."""
    told = [
        {step: value for step, value in zip(run["steps"]["step"], run["steps"][name], strict=True) if value is not None}
        for run in cell.ended.values()
    ]
    steps = sorted(set.intersection(*(set(each) for each in told)))
    return np.array(steps), np.array([[each[step] for step in steps] for each in told])
