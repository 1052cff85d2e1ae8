"""Sparse rows: what they keep, how they are normalised, and how they are carried around."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import troll
from tests.troll import oracle
from tests.troll.cases import SHAPES, make_case
from troll.align import align
from troll.rows import SparseLogProbs, Tail
from troll.sparse import normalise


def dense_from_oracle(logits: np.ndarray, tokens: np.ndarray, tail: Tail = "constant", **options: float) -> np.ndarray:
    """The oracle's sparse rows `[N, V]`."""
    rows = []
    for z, token in zip(logits, tokens, strict=True):
        log_p = oracle.log_softmax(z)
        kept = oracle.support(log_p, int(token), int(options.get("max_tokens", 64)), options.get("dropped_mass", 1e-5))
        rows.append(oracle.sparse_row(log_p, kept, 1e-12, tail))
    return np.stack(rows)


@pytest.mark.parametrize("tail", ["constant", "mass"])
@pytest.mark.parametrize(("vocabulary", "sharp", "moved", "cap"), SHAPES)
def test_rows_equal_the_oracle(vocabulary: int, sharp: float, moved: float, cap: int, tail: Tail) -> None:
    case = make_case(30, vocabulary, sharp, moved)
    old = troll.sparsify(torch.tensor(case.old), torch.tensor(case.tokens), max_tokens=cap, tail=tail)
    expected = dense_from_oracle(case.old, case.tokens, tail, max_tokens=cap)
    np.testing.assert_allclose(old.dense().numpy(), expected, rtol=1e-9, atol=1e-9)
    assert (old.ids >= 0).sum(-1).max() <= cap + 1


def test_slot_zero_is_the_sampled_token_and_the_rest_falls() -> None:
    case = make_case(50, 100, 2.0, 0.0)
    old = troll.sparsify(torch.tensor(case.old), torch.tensor(case.tokens), max_tokens=12)
    assert torch.equal(old.ids[:, 0].long(), torch.tensor(case.tokens))
    for ids, log_probs in zip(old.ids, old.log_probs, strict=True):
        rest = log_probs[1:][ids[1:] >= 0]
        assert (rest.diff() <= 0).all()
        kept = ids[ids >= 0]
        assert len(kept.unique()) == len(kept)


def test_token_log_prob_is_that_of_the_whole_row() -> None:
    case = make_case(20, 60, 1.0, 0.0)
    logits, tokens = torch.tensor(case.old), torch.tensor(case.tokens)
    old = troll.sparsify(logits, tokens, max_tokens=3, temperature=0.7)
    expected = (logits / 0.7).log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    assert torch.allclose(old.token_log_probs, expected)


def test_dropped_mass_zero_keeps_everything_up_to_the_cap() -> None:
    case = make_case(4, 20, 1.0, 0.0)
    logits, tokens = torch.tensor(case.old), torch.tensor(case.tokens)
    old = troll.sparsify(logits, tokens, dropped_mass=0.0)
    assert torch.allclose(old.dense(), logits.log_softmax(-1), atol=1e-10)
    assert torch.allclose(old.kept_mass, torch.ones(4, dtype=torch.float64))


def test_spare_tokens_extend_the_smallest_set() -> None:
    logits = torch.tensor([[0.9, 0.06, 0.03, 0.008, 0.002]]).log()
    tokens = torch.tensor([0])
    counts = [
        int((troll.sparsify(logits, tokens, dropped_mass=0.05, spare_tokens=spare, max_tokens=4).ids >= 0).sum())
        for spare in (0, 1, 2, 3)
    ]
    assert counts == [2, 3, 4, 4]


def test_forbidden_tokens_are_never_kept_but_for_the_sampled_one() -> None:
    logits = torch.tensor([[1.0, -torch.inf, 0.0, -torch.inf]])
    kept = troll.sparsify(logits, torch.tensor([0]), dropped_mass=0.0)
    assert sorted(kept.ids[kept.ids >= 0].tolist()) == [0, 2]
    forbidden = troll.sparsify(logits, torch.tensor([1]), dropped_mass=0.0)
    assert forbidden.ids[0, 0] == 1
    assert forbidden.log_probs[0, 0] == -torch.inf
    assert torch.isfinite(forbidden.tail_log_prob).all()


def test_a_mask_leaves_rows_unread() -> None:
    logits = torch.randn(2, 3, 10)
    logits[0, 1] = torch.nan
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    tokens = torch.tensor([[1, -100, 2], [3, 4, -100]])
    old = troll.sparsify(logits, tokens, mask)
    whole = troll.sparsify(logits[1, :2], tokens[1, :2])
    assert old.shape == (2, 3)
    assert (old.ids[0, 1] == -1).all()
    assert torch.equal(old.log_probs[1, :2], whole.log_probs)


def test_rows_can_be_cut_moved_and_joined() -> None:
    case = make_case(12, 30, 2.0, 0.0)
    old = troll.sparsify(torch.tensor(case.old), torch.tensor(case.tokens), max_tokens=5)
    folded = old.reshape(3, 4)
    mask = torch.tensor([True, False, True])
    assert torch.equal(folded[mask].ids, folded.ids[mask])
    assert torch.equal(folded[1, 2].log_probs, old.log_probs[6])
    assert torch.equal(old[2:5].tail_log_prob, old.tail_log_prob[2:5])
    assert torch.equal(folded.select(torch.tensor([7, 1])).kept_mass, old.kept_mass[[7, 1]])
    assert len(old) == 12
    assert folded.shape == (3, 4)
    narrow = troll.sparsify(torch.tensor(case.old), torch.tensor(case.tokens), max_tokens=2)
    joined = SparseLogProbs.cat([old, narrow])
    assert torch.equal(joined[:12].ids, old.ids)
    assert torch.allclose(joined[12:].dense(), narrow.dense())
    assert torch.equal(old.to("cpu").ids, old.ids)


def test_joining_rows_of_different_vocabularies_is_refused() -> None:
    rows = [troll.sparsify(torch.randn(2, size), torch.tensor([0, 1])) for size in (5, 6)]
    with pytest.raises(ValueError, match=r"parts: vocabulary sizes differ: \[5, 6\]"):
        SparseLogProbs.cat(rows)


def test_the_samplers_top_log_probs_give_the_same_rows() -> None:
    case = make_case(25, 80, 2.0, 0.0)
    logits, tokens = torch.tensor(case.old), torch.tensor(case.tokens)
    log_probs = logits.log_softmax(-1)
    values, ids = log_probs.topk(20)
    shuffle = torch.randperm(20)
    token_log_probs = log_probs.gather(-1, tokens[:, None]).squeeze(-1)
    got = troll.from_top_log_probs(ids[:, shuffle], values[:, shuffle], tokens, token_log_probs, 80, max_tokens=16)
    want = troll.sparsify(logits, tokens, max_tokens=16)
    assert torch.allclose(got.dense(), want.dense())
    assert torch.allclose(got.token_log_probs, want.token_log_probs)


def test_the_samplers_rows_may_be_ragged() -> None:
    ids, log_probs = torch.tensor([[3, 1, -1]]), torch.tensor([[0.7, 0.3, 0.9]]).log()
    rows = troll.from_top_log_probs(ids, log_probs, torch.tensor([3]), torch.tensor([0.7]).log(), 5)
    assert torch.allclose(rows.dense().exp(), torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]]), atol=1e-6)


@pytest.mark.parametrize("tail", ["constant", "mass"])
def test_an_aligned_pair_is_two_distributions_on_one_support(tail: Tail) -> None:
    case = make_case(40, 60, 2.0, 2.0)
    tokens = torch.tensor(case.tokens)
    old, new = (troll.sparsify(torch.tensor(z), tokens, max_tokens=8, tail=tail) for z in (case.old, case.new))
    pair = align(new.ids.long(), new.log_probs, new.tail_log_prob, old)
    for log_probs in (pair.log_new, pair.log_old):
        assert torch.allclose((log_probs + pair.log_count).exp().sum(-1), torch.ones(40, dtype=torch.float64))
    expected = (new.dense().exp() * (new.dense() - old.dense())).sum(-1)
    got = ((pair.log_new + pair.log_count).exp() * (pair.log_new - pair.log_old)).sum(-1)
    assert torch.allclose(got, expected)


def test_a_row_that_keeps_the_vocabulary_has_no_tail() -> None:
    ids = torch.tensor([[0, 1, 2]])
    log_probs = torch.tensor([[0.2, 0.3, 0.5]]).log()
    normalised, tail, mass = normalise(ids, log_probs, 3, 1e-12)
    assert torch.allclose(normalised, log_probs)
    assert torch.isfinite(tail).all()
    assert mass.item() == pytest.approx(1.0)


LOGITS, TOKENS = torch.randn(2, 3, 10), torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("logits", "tokens", "options", "message"),
    [
        (LOGITS.int(), TOKENS, {}, "logits: needs a floating point dtype, got torch.int32"),
        (LOGITS, TOKENS.float(), {}, "tokens: needs an integer dtype, got torch.float32"),
        (LOGITS, TOKENS[:, :2], {}, r"tokens: shape \[2, 2\] does not match logits, which asks for \[2, 3\]"),
        (LOGITS[..., :0], TOKENS, {}, "logits: needs a last dimension with entries"),
        (LOGITS, TOKENS + 10, {}, "tokens: row 0 holds 10, outside the vocabulary of 10"),
        (LOGITS, TOKENS.index_fill(1, torch.tensor(2), -1), {}, "tokens: row 2 holds -1"),
        (LOGITS.masked_fill(torch.eye(6, 10).bool().view(2, 3, 10)[..., :], torch.nan), TOKENS, {}, "logits: row 0"),
        (LOGITS, TOKENS, {"max_tokens": 0}, "max_tokens: needs at least 1, got 0"),
        (LOGITS, TOKENS, {"dropped_mass": 1.0}, "dropped_mass: needs a value in"),
        (LOGITS, TOKENS, {"default_prob": 0.0}, "default_prob: needs a positive number"),
        (LOGITS, TOKENS, {"default_prob": 0.2}, "default_prob: 0.2 for each of 10 tokens"),
        (LOGITS, TOKENS, {"temperature": 0.0}, "temperature: needs a positive number"),
        (LOGITS, TOKENS, {"tail": "none"}, "tail: 'none' is not one of constant, mass"),
        (LOGITS, TOKENS, {"mask": torch.ones(2, 2)}, r"mask: shape \[2, 2\] does not match tokens"),
    ],
)
def test_errors_name_the_argument_and_the_row(
    logits: Tensor, tokens: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        troll.sparsify(logits, tokens, **options)


def test_a_row_of_nothing_but_minus_infinity_is_an_error() -> None:
    logits = torch.zeros(3, 4)
    logits[2] = -torch.inf
    with pytest.raises(ValueError, match="logits: row 2 holds NaN or infinity"):
        troll.sparsify(logits, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.tensor([[0, 9]])}, "ids: row 0 holds an id outside the vocabulary of 5"),
        ({"log_probs": torch.tensor([[torch.nan, -1.0]])}, "log_probs: row 0 holds NaN"),
        ({"log_probs": torch.tensor([[0.5, -1.0]])}, "log_probs: row 0 holds NaN or a probability above 1"),
        ({"tokens": torch.tensor([7])}, "tokens: row 0 holds 7"),
        ({"token_log_probs": torch.tensor([-torch.inf])}, "token_log_probs: row 0"),
        ({"ids": torch.tensor([[0]])}, "ids: shape"),
    ],
)
def test_errors_in_the_samplers_rows(change: dict[str, Any], message: str) -> None:
    arguments = {
        "ids": torch.tensor([[0, 1]]),
        "log_probs": torch.tensor([[-0.5, -1.0]]),
        "tokens": torch.tensor([0]),
        "token_log_probs": torch.tensor([-0.5]),
    } | change
    with pytest.raises(ValueError, match=message):
        troll.from_top_log_probs(**arguments, vocabulary_size=5)
