"""How far projected rows of every kind end above their bound: a million rows of each kind and precision.

    python -m benchmarks.projection_error

KL is measured in float64 on the rows that come back; a gradient is taken through each of them.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

import troll
from benchmarks import report

BOUNDS = (1e-8, 7e-8, 7e-7, 1e-5, 1e-3, 0.05, 1.0, 1.4692, 10.0)
SIZES = (2, 3, 8, 33)
Make = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
"""Old and new logits `[rows, size]` in float64."""


def moved(sharp: float, by: float) -> Make:
    """Normal logits of a standard deviation, and what a normal step makes of them."""

    def make(rows: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        old, step = torch.randn(2, rows, size, generator=generator, dtype=torch.float64)
        return sharp * old, sharp * old + by * step

    return make


def any_scale(rows: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sharpness and step of every row anywhere between 1e-4 and 1e7."""
    old, step = torch.randn(2, rows, size, generator=generator, dtype=torch.float64)
    sharp, by = 10 ** (11 * torch.rand(2, rows, 1, generator=generator, dtype=torch.float64) - 4)
    return sharp * old, sharp * old + by * step


def equal(rows: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    old, _ = moved(3.0, 0.0)(rows, size, generator)
    return old, old.clone()


def nearly_equal(rows: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return moved(3.0, 1e-5)(rows, size, generator)


def two_slots(rows: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An even choice against a new policy that rules out a slot, by 1 to 1e7 nats."""
    old = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    far = 10 ** (7 * torch.rand(rows, generator=generator, dtype=torch.float64))
    return old, torch.stack([torch.zeros_like(far), -far], -1)


def one_slot(rows: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    old, new = torch.randn(2, rows, 1, generator=generator, dtype=torch.float64)
    return old, new


def zeros(rows: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some slots of either side at -inf, never all of those with mass on the other."""
    old, new = moved(3.0, 3.0)(rows, size, generator)
    drawn = torch.rand(2, rows, size, generator=generator)
    drawn[:, :, 0] = 1.0
    return old.masked_fill(drawn[0] < 0.2, -torch.inf), new.masked_fill(drawn[1] < 0.2, -torch.inf)


def plateau(rows: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Old masses that lie many nats apart and scores of different orders: the KL rises in steps between plateaus."""
    old = torch.randn(rows, size, generator=generator, dtype=torch.float64) * 3
    far = 10 ** (7 * torch.rand(rows, size, generator=generator, dtype=torch.float64))
    return old, old - far


KINDS: dict[str, Make] = {
    "flat": moved(0.1, 0.3),
    "usual": moved(3.0, 1.0),
    "peaked": moved(14.0, 10.0),
    "tiny masses": moved(90.0, 90.0),
    "huge logits": moved(1e5, 1e5),
    "any scale": any_scale,
    "steps and plateaus": plateau,
    "equal": equal,
    "nearly equal": nearly_equal,
    "two slots": two_slots,
    "one slot": one_slot,
    "slots at -inf": zeros,
}


def exact_kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """`KL(a || b)` per row in float64; where `a` is zero nothing is added."""
    log_a, log_b = log_a.double(), log_b.double()
    return torch.where(log_a > -torch.inf, log_a.exp() * (log_a - log_b), 0.0).sum(-1)


def measure(make: Make, dtype: torch.dtype, rows: int, seed: int) -> list[float]:
    """Largest excess over the bound and largest error of the reported KL, both relative to a KL above 1, and the number
    of rows with a number that is not finite."""
    generator = torch.Generator().manual_seed(seed)
    excess, apart, broken, settings = 0.0, 0.0, 0, [(bound, size) for bound in BOUNDS for size in SIZES]
    for bound, size in settings:
        old, new = make(-(-rows // len(settings)), size, generator)
        log_old, log_new = old.log_softmax(-1).to(dtype), new.log_softmax(-1).to(dtype).requires_grad_()
        result = troll.project(log_old, log_new, bound)
        weights = torch.randn(log_old.shape, generator=generator, dtype=dtype)
        (gradient,) = torch.autograd.grad((result.log_probs.exp() * weights).sum(), log_new)
        kl = exact_kl(result.log_probs.detach(), log_old)
        unit = max(bound, 1.0)
        excess = max(excess, (kl - bound).max().item() / unit)
        apart = max(apart, (kl - result.kl_after.double()).abs().max().item() / unit)
        broken += int((~gradient.isfinite().all(-1) | kl.isnan()).sum())
    return [excess, apart, broken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="of each kind and precision")
    arguments = parser.parse_args()
    lines, start = [], time.monotonic()
    for number, (name, make) in enumerate(KINDS.items()):
        cells = [name]
        for dtype in (torch.float32, torch.float64):
            excess, apart, broken = measure(make, dtype, arguments.rows, number)
            cells += [f"{excess:.1e}", f"{apart:.1e}", f"{broken:.0f}"]
        lines.append(cells)
        print(*cells, f"{time.monotonic() - start:.0f} s", sep=" | ", flush=True)
    columns = ["largest excess", "error of `kl_after`", "not finite"]
    header = ["rows", *(f"{name}, {dtype}" for dtype in ("float32", "float64") for name in columns)]
    setting = (
        f"`python -m benchmarks.projection_error`: {arguments.rows:,} rows of each kind and precision, of "
        f"{', '.join(map(str, SIZES))} slots, to bounds of {', '.join(f'{bound:g}' for bound in BOUNDS)}, each with a "
        "gradient. KL is measured in float64 on the rows that came back, in nats; for bounds above 1 divided by them. "
        "Stated are 1e-6 in float32 and 1e-9 in float64."
    )
    report.write_section("projection-error", "The projection's bound", f"{setting}\n\n{report.table(header, lines)}")


if __name__ == "__main__":
    main()
