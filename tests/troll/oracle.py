"""What the objective should say, in float64 numpy: one row at a time, dense, by the longest way round.

Nothing here is shared with `troll/`. The dual variable is found by bisection on its logarithm, and the gradient is a
product of Jacobian matrices written out in full.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def support(log_p: Array, token: int, max_tokens: int, dropped_mass: float) -> list[int]:
    """Tokens taken from the most likely down until the mass is reached or the cap is full; the sampled one besides."""
    chosen: list[int] = []
    mass = 0.0
    for candidate in sorted(range(len(log_p)), key=lambda i: -log_p[i]):
        if len(chosen) == max_tokens or mass >= 1.0 - dropped_mass:
            break
        chosen.append(candidate)
        mass += float(np.exp(log_p[candidate]))
    return sorted({*chosen, token})


def sparse_row(log_p: Array, kept: list[int], default_prob: float, tail: str = "constant") -> Array:
    """Dense log-probabilities `[V]` of a sparse row."""
    left_out = len(log_p) - len(kept)
    each = default_prob
    if tail == "mass" and left_out:
        each = max(default_prob, (1.0 - np.exp(log_p[kept]).sum()) / left_out)
    mass = np.full(len(log_p), each)
    mass[kept] = np.exp(log_p[kept])
    return np.log(mass) - np.log(mass.sum())


def kl(log_a: Array, log_b: Array) -> float:
    return float((np.exp(log_a) * (log_a - log_b)).sum())


def geodesic(log_q: Array, log_p: Array, eta: float) -> Array:
    return log_softmax((eta * log_q + log_p) / (1.0 + eta))


def project(log_q: Array, log_p: Array, bound: float) -> tuple[Array, float]:
    """The projected row and its dual variable eta; eta is 0 inside the trust region."""
    if kl(log_p, log_q) <= bound:
        return log_p, 0.0
    low, high = -60.0, 60.0
    for _ in range(300):
        middle = 0.5 * (low + high)
        if kl(geodesic(log_q, log_p, np.exp(middle)), log_q) > bound:
            low = middle
        else:
            high = middle
    return geodesic(log_q, log_p, np.exp(high)), float(np.exp(high))


def projection_jacobian(log_q: Array, log_p: Array, bound: float) -> Array:
    """`d log pi_i / d log p_j`, implicit function theorem on the tight constraint, with eta as the unknown."""
    log_pi, eta = project(log_q, log_p, bound)
    size = len(log_q)
    if eta == 0.0:
        return np.eye(size)
    pi, score = np.exp(log_pi), log_p - log_q
    centre = np.eye(size) - np.outer(np.ones(size), pi)
    by_p = centre / (1.0 + eta)
    by_eta = -(centre @ score) / (1.0 + eta) ** 2
    # d KL(pi || q) along a change of log pi is sum pi (log pi - log q) d log pi: pi stays normalised.
    slope = pi * (log_pi - log_q)
    return by_p - np.outer(by_eta, slope @ by_p) / (slope @ by_eta)


def row(
    new_logits: Array,
    old_logits: Array,
    token: int,
    advantage: float,
    *,
    bound: float = 0.05,
    alpha: float = 1.0,
    max_tokens: int = 64,
    dropped_mass: float = 1e-5,
    default_prob: float = 1e-12,
    tail: str = "constant",
    kept: list[int] | None = None,
    target: Array | None = None,
    weight: float | None = None,
    pessimistic: bool = False,
) -> tuple[float, Array]:
    """Loss of one token and the projected row. `kept` and `target` freeze the support and the stopped gradient.

    `weight` replaces the ratio's value, keeping its relative derivative: the sequence ratio.
    """
    log_q, log_p = log_softmax(old_logits), log_softmax(new_logits)
    kept = support(log_p, token, max_tokens, dropped_mass) if kept is None else kept
    q = sparse_row(log_q, support(log_q, token, max_tokens, dropped_mass), default_prob, tail)
    p = sparse_row(log_p, kept, default_prob, tail)
    pi, eta = project(q, p, bound)
    regression = kl(p, pi if target is None else target) if eta else 0.0
    ratio = float(np.exp(pi[token] - q[token])) if weight is None else weight
    if pessimistic:
        ratio = worse(advantage, ratio, float(np.exp(p[token] - q[token])))
    return -advantage * ratio + alpha * regression, pi


def worse(advantage: float, projected: float, own: float) -> float:
    """The ratio with the higher loss; the projected one where the policy's own is beyond 10."""
    return min((projected, own), key=lambda ratio: advantage * ratio) if own < 10 else projected


def gradient(
    new_logits: Array,
    old_logits: Array,
    token: int,
    advantage: float,
    *,
    bound: float = 0.05,
    alpha: float = 1.0,
    max_tokens: int = 64,
    dropped_mass: float = 1e-5,
    default_prob: float = 1e-12,
    tail: str = "constant",
    weight: float | None = None,
    pessimistic: bool = False,
) -> Array:
    """`d loss / d logits` of one token through the full Jacobians."""
    log_q, log_p = log_softmax(old_logits), log_softmax(new_logits)
    size, kept = len(log_p), support(log_p, token, max_tokens, dropped_mass)
    q = sparse_row(log_q, support(log_q, token, max_tokens, dropped_mass), default_prob, tail)
    p = sparse_row(log_p, kept, default_prob, tail)
    pi, eta = project(q, p, bound)
    ratio = float(np.exp(pi[token] - q[token])) if weight is None else weight
    by_sparse = -advantage * ratio * projection_jacobian(q, p, bound)[token]
    own = float(np.exp(p[token] - q[token]))
    if pessimistic and worse(advantage, ratio, own) != ratio:
        by_sparse = -advantage * own * np.eye(size)[token]
    if eta:
        by_sparse = by_sparse + alpha * np.exp(p) * (p - pi + 1.0)
    return by_sparse @ sparse_jacobian(log_p, kept, default_prob, tail) @ (np.eye(size) - np.exp(log_p))


def sparse_jacobian(log_p: Array, kept: list[int], default_prob: float, tail: str) -> Array:
    """`d (sparse row)_i / d log p_j`, zero for columns that are not kept."""
    size, p = len(log_p), np.exp(log_p)
    left_out = [i for i in range(size) if i not in set(kept)]
    spread = tail == "mass" and len(left_out) and (1.0 - p[kept].sum()) / len(left_out) > default_prob
    jacobian = np.zeros((size, size))
    if spread:
        jacobian[kept, kept] = 1.0
        jacobian[np.ix_(left_out, kept)] = -p[kept] / (1.0 - p[kept].sum())
        return jacobian
    total = p[kept].sum() + len(left_out) * default_prob
    jacobian[:, kept] = -p[kept] / total
    jacobian[kept, kept] += 1.0
    return jacobian


def differences(new_logits: Array, old_logits: Array, token: int, advantage: float, **options: Any) -> Array:
    """`d loss / d logits` of one token by central differences, support and regression target frozen."""
    kept = support(
        log_softmax(new_logits), token, int(options.get("max_tokens", 64)), float(options.get("dropped_mass", 1e-5))
    )
    _, target = row(new_logits, old_logits, token, advantage, **options)
    step, result = 1e-5, np.zeros(len(new_logits))
    for j in range(len(new_logits)):
        nudge = np.zeros(len(new_logits))
        nudge[j] = step
        up, _ = row(new_logits + nudge, old_logits, token, advantage, kept=kept, target=target, **options)
        down, _ = row(new_logits - nudge, old_logits, token, advantage, kept=kept, target=target, **options)
        result[j] = (up - down) / (2 * step)
    return result


def batch(
    new_logits: Array, old_logits: Array, tokens: NDArray[np.int64], advantages: Array, **options: Any
) -> tuple[float, Array]:
    """Token-mean loss of N rows and its gradient `[N, V]`."""
    rows = list(zip(new_logits, old_logits, tokens, advantages, strict=True))
    losses = [row(z, o, int(t), float(a), **options)[0] for z, o, t, a in rows]
    gradients = [gradient(z, o, int(t), float(a), **options) for z, o, t, a in rows]
    return float(np.mean(losses)), np.stack(gradients) / len(rows)
