"""What each correction for a sampler's mismatch costs in samples and in bias, on answers of 256 to 16,384 tokens.

    python -m benchmarks.mismatch [--answers 4000]

Tokens are drawn from ``q``, a policy near the old policy ``p``: its log-probabilities have noise of so many nats, as
other kernels make, or all lean against the reward, as the policy of a step ago does. An answer is right if its tokens'
values sum to more than 0. What is estimated is the gradient that makes right answers likelier; its true value under
``p`` is known. Errors are relative to it: the bias, and the root mean square error of a batch of 256 answers.
"""

import argparse
import math

import torch
from torch import Tensor

from benchmarks import report
from service.jobs.hyperparameters.reinforcement import MISMATCH_CAPS

LENGTHS = (256, 1024, 4096, 16384)
NOISES = (0.005, 0.02, 0.05)
TOKENS = 16
BATCH = 256
CHUNK = 64
METHODS = ("none", "token-truncate", "token-mask", "geometric-mask", "sequence-mask")


def policies(kind: str, noise: float, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities ``[number, TOKENS]`` of ``p`` and ``q``, and the tokens' values, of mean 0 under ``p``."""
    p = (2 * torch.randn(number, TOKENS, generator=generator, dtype=torch.float64)).log_softmax(-1)
    values = torch.randn(number, TOKENS, generator=generator, dtype=torch.float64)
    values = values - (p.exp() * values).sum(-1, keepdim=True)
    values = values / (p.exp() * values.square()).sum(-1, keepdim=True).sqrt()
    if kind == "noise":
        apart = noise * torch.randn(number, TOKENS, generator=generator, dtype=torch.float64)
    else:
        apart = -noise * values
    return p, (p + apart).log_softmax(-1), values


def measure(kind: str, noise: float, answers: int, seed: int) -> dict[tuple[int, str], tuple[float, float, float]]:
    """For each length and method the effective share of the samples, the bias and the error of a batch."""
    generator = torch.Generator().manual_seed(seed)
    sums = {name: torch.zeros(answers, dtype=torch.float64) for name in ("log_ratio", "value", "truncated", "masked")}
    squares = dict.fromkeys(("truncated", "masked"), 0.0)
    totals = dict.fromkeys(("truncated", "masked"), 0.0)
    rows = {}
    for start in range(0, LENGTHS[-1], CHUNK):
        p, q, values = policies(kind, noise, CHUNK, generator)
        drawn = torch.multinomial(q.exp(), answers, replacement=True, generator=generator)
        log_ratios, scores = (p - q).gather(-1, drawn), values.gather(-1, drawn)
        ratios = log_ratios.exp()
        cap = MISMATCH_CAPS["token-truncate"]
        weights = {"truncated": ratios.clamp(max=cap), "masked": ratios * ((ratios < cap) & (ratios > 1 / cap))}
        sums["log_ratio"] += log_ratios.sum(0)
        sums["value"] += scores.sum(0)
        for name, each in weights.items():
            sums[name] += (each * scores).sum(0)
            squares[name], totals[name] = squares[name] + float(each.square().sum()), totals[name] + float(each.sum())
        length = start + CHUNK
        if length in LENGTHS:
            for method in METHODS:
                rows[length, method] = _row(method, length, answers, sums, totals, squares)
    return rows


def _row(
    method: str, length: int, answers: int, sums: dict[str, Tensor], totals: dict[str, float], squares: dict[str, float]
) -> tuple[float, float, float]:
    ones = torch.ones(answers, dtype=torch.float64)
    ratio = sums["log_ratio"].exp()
    of_tokens = {"token-truncate": "truncated", "token-mask": "masked", "geometric-mask": "truncated"}
    match method:
        case "sequence-mask":
            weight = torch.where(ratio <= MISMATCH_CAPS["sequence-mask"], ratio, 0.0)
        case "geometric-mask":
            weight = ((sums["log_ratio"] / length).abs() < 0.01).double()
        case _:
            weight = ones
    name = of_tokens.get(method)
    weighted = weight * (sums[name] if name else sums["value"])
    share = float(weight.sum() ** 2 / weight.square().sum() / answers) if weight.any() else 0.0
    if name:
        share *= totals[name] ** 2 / squares[name] / (answers * length)
    right = (sums["value"] > 0).double()
    # The baseline of a batch is the mean of its rewards.
    terms = weighted * (right - right.mean())
    truth = math.sqrt(length / (2 * math.pi))
    bias = float(terms.mean()) / truth - 1
    error = math.sqrt(bias**2 + float(terms.var()) / BATCH / truth**2)
    return share, bias, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=4000)
    answers = parser.parse_args().answers
    rows = []
    for kind, noises in (("noise", NOISES), ("a step behind", NOISES[1:])):
        for noise in noises:
            found = measure(kind, noise, answers, seed=1)
            for method in METHODS:
                cells = [found[length, method] for length in LENGTHS]
                shown = [f"{share:.0%}, {bias:+.0%}, {error:.2f}" for share, bias, error in cells]
                rows.append([kind, str(noise), f"`{method}`", *shown])
    body = "\n\n".join(
        (
            f"`python -m benchmarks.mismatch`: for answers of 256 to 16,384 tokens the effective share of {answers:,} "
            f"samples, the bias of the gradient, and the root mean square error of a batch of {BATCH}, both relative "
            "to the true gradient. Noise is independent from token to token, as other kernels make it; a policy a step "
            "behind leans against the reward in every token.",
            report.table(["mismatch", "nats a token", "correction", *(f"{each:,} tokens" for each in LENGTHS)], rows),
            "Noise averages out over the tokens of an answer, and correcting it for whole answers throws answers away "
            "for nothing. Against a policy that leans one way in every token no correction of tokens helps, and that "
            "of whole answers only in short ones, at a little mismatch: the answers it would need are never sampled.",
        )
    )
    report.write_section("mismatch", "Corrections for a sampler's mismatch", body)


if __name__ == "__main__":
    main()
