"""The loss layer on a GPU, forward and backward: seconds and memory of every method, against one matrix product.

    python -m benchmarks.gpu.loss > loss.jsonl

N tokens, H hidden size, V vocabulary, in bfloat16. For each shape: seconds (best of ``--rounds``), times the dense
clipping loss, times one product of hidden states and output matrix without gradients, and megabytes at the peak beyond
the matrix's gradient. ``kernels`` says how far the compiled kernels' loss and gradients are from the plain version's in
float32, relative to their norm. A method that fails shows why in place of its numbers. Every finding is a line of JSON,
printed as soon as it is known.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import troll
from benchmarks import loss_layer, report
from benchmarks.loss_layer import Layer

SHAPES = [(8192, 4096, 151_936), (8192, 1024, 151_936)]
COMPARED = 256
"""Tokens on which the kernels are compared with the plain version."""


def sparse(layer: Layer) -> Tensor:
    """TROLL as the trainer calls it where the output matrix is that of the embeddings."""
    return (
        troll.Troll()
        .fused_loss(layer.hidden, layer.weight, layer.old, layer.tokens, layer.advantages, sparse_weight_grad=True)
        .loss
    )


METHODS: dict[str, Callable[[Layer], Tensor]] = {
    **loss_layer.METHODS,
    "TROLL, fused, sparse gradient": sparse,
    "DPPO, `Dppo().fused_loss`": loss_layer.fused(troll.Dppo()),
}


def measure(shape: tuple[int, int, int], rounds: int, methods: Sequence[str]) -> None:
    """Tell everything about one shape."""
    layer = loss_layer.make_layer(*shape, flat=False)
    tell(shape=dict(zip(("N", "H", "V"), shape, strict=True)))

    def product() -> None:
        with torch.no_grad():
            _ = layer.hidden @ layer.weight.T

    fastest = report.best_times({"product": product}, rounds)["product"]
    tell(product_milliseconds=round(fastest * 1e3, 3))
    times: dict[str, float] = {}
    for name in methods:
        started = time.perf_counter()
        try:
            loss_layer.step(METHODS[name], layer)
            report.synchronize()
        except Exception as error:
            tell(method=name, failed=repr(error)[:300])
            _forget()
            continue
        row: dict[str, Any] = {"method": name, "first_seconds": round(time.perf_counter() - started, 3)}
        times |= report.best_times({name: lambda m=METHODS[name]: loss_layer.step(m, layer)}, rounds)
        row |= {
            "milliseconds": round(times[name] * 1e3, 3),
            "times_product": round(times[name] / fastest, 3),
        }
        if loss_layer.BASE in times:
            row["times_dense_clip"] = round(times[name] / times[loss_layer.BASE], 3)
        if torch.cuda.is_available():
            peak = report.peak_bytes(lambda m=METHODS[name]: loss_layer.step(m, layer)) - layer.gradient_bytes
            row["megabytes_beyond_gradient"] = round(peak / 1e6, 1)
        tell(**row)
    numbers = troll.Troll().fused_loss(layer.hidden, layer.weight, layer.old, layer.tokens, layer.advantages).metrics
    tell(rows={name: float(f"{float(value):.4g}") for name, value in numbers.items()})
    tell(kernels=kernels_apart(layer))


def tell(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def kernels_apart(layer: Layer) -> dict[str, float]:
    """How far loss and gradients of the kernels are from the plain version's, in float32."""
    some = slice(0, COMPARED)
    weight = layer.weight.detach().float()
    old = troll.fused_sparsify(layer.old_hidden[some].float(), weight, layer.tokens[some])

    def gradients() -> tuple[Tensor, Tensor, Tensor]:
        hidden, matrix = layer.hidden.detach()[some].float().requires_grad_(), weight.clone().requires_grad_()
        loss = troll.Troll().fused_loss(hidden, matrix, old, layer.tokens[some], layer.advantages[some]).loss
        return (loss.detach(), *torch.autograd.grad(loss, (hidden, matrix)))

    compiled = gradients()
    before = os.environ.get("TROLL_KERNELS")
    os.environ["TROLL_KERNELS"] = "off"
    try:
        plain = gradients()
    finally:
        if before is None:
            del os.environ["TROLL_KERNELS"]
        else:
            os.environ["TROLL_KERNELS"] = before
    names = ("loss", "hidden_gradient", "weight_gradient")
    return {
        name: float(f"{float((ours - theirs).norm() / theirs.norm()):.3g}")
        for name, ours, theirs in zip(names, compiled, plain, strict=True)
    }


def _forget() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, action="append", metavar=("N", "H", "V"))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    given = parser.parse_args()
    tell(machine=report.machine(("torch", "triton")))
    for shape in given.shape or SHAPES:
        measure(tuple(shape), given.rounds, given.methods)
        _forget()


if __name__ == "__main__":
    main()
