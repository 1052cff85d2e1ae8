"""``text_similarity``: each metric against its definition or its reference implementation."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.meteor_score import single_meteor_score

from service.graders.kinds.text_similarity import Metric
from service.graders.schemas import parse_grader
from workers.graders import GraderSample, build
from workers.graders.text_similarity import _METRICS, bleu, gleu, meteor, rouge_l, rouge_n

CAT, OTHER = "the cat is on the mat", "the cat sat on the mat"
VOCABULARY = ["run", "runs", "running", "cat", "cats", "the", "a", "on", "of."]
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=9).map(" ".join)


def test_every_metric_of_the_wire_has_a_function() -> None:
    assert set(_METRICS) == set(Metric.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", _METRICS)
def test_a_grader_of_each_metric(name: str) -> None:
    raw = {"type": "text_similarity", "name": "g", "input": "{{sample.output_text}}", "evaluation_metric": name}
    grader = build(parse_grader(raw | {"reference": "{{item.answer}}"}, "grader"))
    same, different = grader.grade([GraderSample({"answer": CAT}, CAT), GraderSample({"answer": CAT}, "Nein.")])
    assert same.reward == pytest.approx(1.0)
    assert different.reward is not None
    assert different.reward < 0.25


@pytest.mark.parametrize("name", _METRICS)
@given(text=st.text(max_size=30), reference=st.text(max_size=30))
def test_scores_are_in_the_unit_interval_and_one_for_equal_texts(name: str, text: str, reference: str) -> None:
    metric = _METRICS[name]
    assert 0.0 <= metric(text, reference) <= 1.0 + 1e-12
    assert metric(text, text) == pytest.approx(1.0)


@pytest.mark.parametrize("name", _METRICS)
def test_an_empty_answer_is_not_like_any_text(name: str) -> None:
    assert _METRICS[name]("", "46") == 0.0


def test_rouge_n_is_the_f1_of_n_grams() -> None:
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples are shared.
    assert [rouge_n(CAT, OTHER, n) for n in (1, 2, 3, 4)] == pytest.approx([5 / 6, 3 / 5, 1 / 4, 0])


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    # "the on the mat" in this order: 4 of 4 words and 4 of 7.
    assert rouge_l("the on the mat", "the very cat on all the mat") == pytest.approx(2 * 4 / (4 + 7))


def test_rouge_ignores_case_and_punctuation_in_every_script() -> None:
    assert rouge_n("Привет, мир!", "привет мир", 2) == 1.0
    assert rouge_n("Привет, друг!", "привет мир", 1) == 0.5


def test_gleu_is_the_lesser_of_precision_and_recall() -> None:
    # The two words of the answer have 3 n-grams, all among the 18 of the reference: recall is the lesser.
    assert gleu("the cat", OTHER) == pytest.approx(3 / 18)


def test_bleu_is_the_geometric_mean_of_precisions_times_the_brevity_penalty() -> None:
    # Precisions 5/6, 3/5, 1/4 and, smoothed, (1/2)/3; both have six words.
    assert bleu(CAT, OTHER) == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)


def test_bleu_of_short_texts_uses_the_n_grams_they_have() -> None:
    assert bleu("46", "46") == 1.0


class NoSynonyms:
    def synsets(self, word: str) -> list[str]:
        return []


@given(text=WORDS, reference=WORDS)
def test_meteor_agrees_with_nltk_without_synonyms(text: str, reference: str) -> None:
    words, wanted = text.replace(".", " .").split(), reference.replace(".", " .").split()
    if words != wanted:
        expected = single_meteor_score(wanted, words, wordnet=NoSynonyms()) if words and wanted else 0.0
        assert meteor(text, reference) == pytest.approx(expected)


def test_meteor_matches_stems() -> None:
    assert meteor("cats running", "cat runs") > 0.9
    assert rouge_n("cats running", "cat runs", 1) == 0.0


@pytest.mark.parametrize("metric", ["fuzzy_match", "rouge_l"])
def test_texts_too_long_to_be_compared_earn_least(metric: str) -> None:
    raw = {"type": "text_similarity", "name": "x", "evaluation_metric": metric}
    raw |= {"input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
    long = "ab " * 100_000
    (found,) = build(parse_grader(raw, "grader")).grade([GraderSample({"answer": long}, long + "c")])
    assert (found.error, found.earns_least) == ("other_error", True)
    assert "too long to be compared" in str(found.detail)


def test_the_time_of_meteor_does_not_grow_with_the_square_of_the_length() -> None:
    def seconds(length: int) -> float:
        words = [[str(random.Random(side).random() + i) for i in range(length)] for side in (1, 2)]
        started = time.process_time()
        meteor(*(" ".join(each) for each in words))
        return time.process_time() - started

    seconds(100)
    assert seconds(8000) < 30 * max(seconds(1000), 0.01)
