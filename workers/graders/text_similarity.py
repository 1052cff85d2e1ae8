"""``text_similarity``: how close two texts are, in [0, 1]; 1 for equal texts by every metric.

``fuzzy_match`` is RapidFuzz's ``fuzz.ratio`` over 100: twice the length of the longest common subsequence over the sum
of both lengths. OpenAI's documentation says "using rapidfuzz" and not which of its scores; its examples use ``ratio``
in one place and ``WRatio`` with lower-casing and removal of punctuation in another. As a reward only ``ratio`` is safe:
it is 1 for equal texts and for no others, and every needless character lowers it. ``WRatio`` pays 0.9 for an answer
that merely contains the reference, so a model learns to list all candidates, and with punctuation removed it cannot
tell -5 from 5.

The other metrics compare words. For BLEU, GLEU and METEOR a word is a run of letters and digits or one other character
that is not space, case kept for the first two; ROUGE ignores case and everything but letters and digits, as its
reference implementation does, but with the letters of every script.

- ``bleu``: up to 4-grams, or as long as the shorter of a short pair allows; zero counts smoothed by halves (NIST).
- ``gleu``: the lesser of precision and recall over 1- to 4-grams (Wu et al. 2016, https://arxiv.org/abs/1609.08144).
- ``meteor``: exact and stem matches. The third kind, synonyms, needs WordNet, which is not part of any package.
- ``rouge_1`` to ``rouge_5``, ``rouge_l``: F1 of n-grams, or of the longest common subsequence.

NLTK is imported where it is used: it takes a third of a second.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from service.graders.kinds.text_similarity import TextSimilarity
from service.graders.settings import GraderSettings
from service.graders.template import TooLongError
from workers.graders.grading import Comparison, Grade, GraderSample, SingleGrader

Metric = Callable[[str, str], float]
_WORD = re.compile(r"\w+|[^\w\s]")
_ALPHANUMERIC = re.compile(r"[^\W_]+")
_MAX_ORDER = 4
MAX_LETTER_PAIRS, MAX_WORD_PAIRS = 4_000_000_000, 400_000_000
"""As of two texts of 63,000 letters, or of 20,000 words; either takes a fifth of a second."""


def _check_length(text: Sequence[object], reference: Sequence[object], unit: str, most: int) -> None:
    """What is compared letter by letter takes the product of the lengths, and nothing else in the process goes on."""
    if len(text) * len(reference) > most:
        raise TooLongError(
            f"texts of {len(text):,} and {len(reference):,} {unit} are too long to be compared: the product of the "
            f"lengths may be {most:,}"
        )


def fuzzy_match(text: str, reference: str) -> float:
    _check_length(text, reference, "characters", MAX_LETTER_PAIRS)
    return fuzz.ratio(text, reference) / 100.0


def bleu(text: str, reference: str) -> float:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    words, wanted = _words(text), _words(reference)
    order = min(_MAX_ORDER, len(words), len(wanted))
    if order == 0:
        return _both_empty(words, wanted)
    return float(sentence_bleu([wanted], words, [1 / order] * order, SmoothingFunction().method3))


def gleu(text: str, reference: str) -> float:
    from nltk.translate.gleu_score import sentence_gleu

    words, wanted = _words(text), _words(reference)
    return float(sentence_gleu([wanted], words)) if words and wanted else _both_empty(words, wanted)


def meteor(text: str, reference: str) -> float:
    """F-mean of precision and recall, 9 to 1 for recall, less a penalty for broken order (Banerjee and Lavie 2005)."""
    words, wanted = _words(text.lower()), _words(reference.lower())
    if not words or not wanted:
        return _both_empty(words, wanted)
    if words == wanted:
        # The penalty leaves equal texts just short of 1, the more so the shorter they are.
        return 1.0
    matches = _align(words, wanted)
    if not matches:
        return 0.0
    precision, recall = len(matches) / len(words), len(matches) / len(wanted)
    f_mean = precision * recall / (0.9 * precision + 0.1 * recall)
    breaks = sum(after != (i + 1, j + 1) for (i, j), after in pairwise(matches))
    return f_mean * (1 - 0.5 * ((breaks + 1) / len(matches)) ** 3)


def _align(words: list[str], wanted: list[str]) -> list[tuple[int, int]]:
    """Pairs of positions with the same word, then of what is left those with the same stem, in order of ``words``.

    The last free place goes to the last word, as in NLTK's ``meteor_score``, whose nested loops take quadratic time.
    """
    from nltk.stem.porter import PorterStemmer

    stem = cache(PorterStemmer().stem)
    matches: list[tuple[int, int]] = []
    left, free = list(enumerate(words)), list(enumerate(wanted))
    for form in (str, stem):
        places: defaultdict[str, list[int]] = defaultdict(list)
        for j, word in free:
            places[form(word)].append(j)
        matched = [(i, places[form(word)].pop()) for i, word in reversed(left) if places[form(word)]]
        matches += matched
        taken, used = {i for i, _ in matched}, {j for _, j in matched}
        left, free = [each for each in left if each[0] not in taken], [each for each in free if each[0] not in used]
    return sorted(matches)


def rouge_n(text: str, reference: str, n: int) -> float:
    words, wanted = _ALPHANUMERIC.findall(text.lower()), _ALPHANUMERIC.findall(reference.lower())
    if words == wanted:
        # Also where both have fewer words than the n-gram, and no n-gram to share.
        return 1.0
    grams, wanted_grams = _grams(words, n), _grams(wanted, n)
    return _f1((grams & wanted_grams).total(), grams.total(), wanted_grams.total())


def rouge_l(text: str, reference: str) -> float:
    words, wanted = _ALPHANUMERIC.findall(text.lower()), _ALPHANUMERIC.findall(reference.lower())
    if not words or not wanted:
        return _both_empty(words, wanted)
    _check_length(words, wanted, "words", MAX_WORD_PAIRS)
    return _f1(LCSseq.similarity(words, wanted), len(words), len(wanted))


def _grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _f1(shared: int, found: int, wanted: int) -> float:
    return 2 * shared / (found + wanted) if shared else 0.0


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _both_empty(words: Sequence[str], wanted: Sequence[str]) -> float:
    return float(not words and not wanted)


_METRICS: dict[str, Metric] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "meteor": meteor,
    **{f"rouge_{n}": partial(rouge_n, n=n) for n in range(1, 6)},
    "rouge_l": rouge_l,
}


class TextSimilarityGrader(SingleGrader):
    def __init__(self, definition: TextSimilarity, settings: GraderSettings) -> None:
        metric = _METRICS[definition.evaluation_metric]
        self._comparison = Comparison(definition.input, definition.reference, metric)

    def grade(self, samples: list[GraderSample]) -> list[Grade]:
        return [self._comparison.grade(sample) for sample in samples]
