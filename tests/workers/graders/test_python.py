"""``python``: what ``grade(sample, item)`` is given, and what its result or failure becomes."""

import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from service.graders.schemas import GraderError, parse_grader
from service.graders.settings import GraderSettings, JailTier
from tests.workers.graders import jails
from workers.graders import Grade, GraderSample, JailError, build, faults
from workers.graders.jail import libraries_of

ROOT = Path(__file__).parents[3]
EXTRA = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["graders"]
PACKAGES = [Requirement(text).name for text in EXTRA]
MODULES = {"scikit-learn": "sklearn"}
GRADE = "def grade(sample, item):\n    return 1.0\n"


def module_of(package: str) -> str:
    return MODULES.get(package, package.replace("-", "_"))


@pytest.fixture(scope="module")
def tier() -> JailTier:
    """What graders make of a jail's answers is the same in every tier."""
    return jails.first_tier()


def grade(tier: JailTier, source: str, *samples: GraderSample, **fields: Any) -> list[Grade]:
    definition = parse_grader({"type": "python", "source": source}, "grader")
    return build(definition, jails.settings(tier, **fields)).grade(list(samples))


def test_a_grader_sees_the_answer_and_the_row(tier: JailTier) -> None:
    source = """
def grade(sample, item):
    assert sample["choices"][0]["message"]["content"] == sample["output_text"]
    return sample["output_json"]["n"] / item["whole"]["n"]
"""
    assert grade(tier, source, GraderSample({"whole": {"n": 4}}, '{"n": 3}')) == [Grade(0.75)]


def test_an_answer_that_is_not_json_has_no_output_json(tier: JailTier) -> None:
    source = "def grade(sample, item):\n    return sample['output_json'] is None\n"
    assert grade(tier, source, GraderSample({}, "no JSON")) == [Grade(1.0)]


@pytest.mark.parametrize(
    ("expression", "reward"),
    [("1", 1.0), ("True", 1.0), ("-2.5", -2.5), ("numpy.float32(0.5)", 0.5), ("fractions.Fraction(1, 4)", 0.25)],
)
def test_numbers_of_any_kind_are_rewards(tier: JailTier, expression: str, reward: float) -> None:
    source = f"import fractions, numpy\ndef grade(sample, item):\n    return {expression}\n"
    assert grade(tier, source, GraderSample({}, "")) == [Grade(reward)]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return None", "grade returned NoneType, not a number"),
        ("return '1.0'", "grade returned str, not a number"),
        ("return float('nan')", "grade returned nan, not a finite number"),
        ("return 1e308", "The grader 'python' gave 1e+308; rewards must be finite numbers from -1,000,000"),
        ("return -10**400", "OverflowError: int too large"),
        ("return item['answer']", "line 2, in grade\n    return item['answer']"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os; os._exit(3)", "exit code 3"),
        ("import os; os.abort()", "The grader gave no reward"),
    ],
)
def test_a_failure_is_no_reward_and_says_why(tier: JailTier, body: str, says: str) -> None:
    (result,) = grade(tier, f"def grade(sample, item):\n    {body}\n", GraderSample({}, ""))
    assert (result.reward, result.error, result.raised) == (None, "python_grader_runtime_error", True)
    assert result.detail is not None
    assert says in result.detail


def test_a_grader_that_does_not_end_is_stopped(tier: JailTier) -> None:
    (result,) = grade(tier, "def grade(sample, item):\n    while True: pass\n", GraderSample({}, ""), seconds=0.7)
    assert (result.reward, result.error, result.sample_at_fault) == (None, "python_grader_runtime_error", False)
    assert result.detail == "The grader gave no reward: it was stopped after 0.7 seconds."


def test_a_grader_that_only_waits_says_nothing_of_the_answer(tier: JailTier) -> None:
    source = "import time\ndef grade(sample, item):\n    time.sleep(60)\n"
    (result,) = grade(tier, source, GraderSample({}, ""), seconds=0.7)
    assert (result.error, result.earns_least) == ("python_grader_runtime_error", False)


def test_a_failure_costs_that_sample_only(tier: JailTier) -> None:
    source = "import os\ndef grade(sample, item):\n    return item['n'] if item['n'] % 3 else os._exit(1)\n"
    grades = grade(tier, source, *(GraderSample({"n": n}, "") for n in range(10)))
    assert [each.reward for each in grades] == [float(n) if n % 3 else None for n in range(10)]


def test_samples_do_not_share_state(tier: JailTier) -> None:
    source = "seen = []\ndef grade(sample, item):\n    seen.append(1)\n    return len(seen)\n"
    assert grade(tier, source, *[GraderSample({}, "")] * 3, jail_lanes=1) == [Grade(1.0)] * 3


def test_unusual_text_arrives_unharmed(tier: JailTier) -> None:
    text = 'a\u2028b\n\x00"\\ 🦙 \ud800'
    source = f"def grade(sample, item):\n    return sample['output_text'] == item['text'] == {text!r}\n"
    assert grade(tier, source, GraderSample({"text": text}, text)) == [Grade(1.0)]


def test_a_large_row_fits(tier: JailTier) -> None:
    source = "def grade(sample, item):\n    return len(item['text'])\n"
    assert grade(tier, source, GraderSample({"text": "x" * 1_000_000}, "")) == [Grade(1_000_000.0)]


def test_prints_are_thrown_away(tier: JailTier) -> None:
    source = "def grade(sample, item):\n    print('x' * 1_000_000)\n    return 1\n"
    assert grade(tier, source, GraderSample({}, "")) == [Grade(1.0)]


def test_a_grader_may_start_python(tier: JailTier) -> None:
    source = """
import subprocess, sys
def grade(sample, item):
    return float(subprocess.run([sys.executable, "-c", "import numpy; print(0.5)"], capture_output=True).stdout)
"""
    assert grade(tier, source, GraderSample({}, "")) == [Grade(0.5)]


def test_a_batch_out_of_time_is_given_up_and_says_so(tier: JailTier) -> None:
    source = "import time\ndef grade(sample, item):\n    time.sleep(1.5)\n    return 1\n"
    grades = grade(tier, source, *[GraderSample({}, "")] * 3, jail_lanes=1, batch_seconds=0.5)
    assert (grades[-1].reward, grades[-1].error) == (None, "python_grader_server_error")
    assert grades[-1].detail == "the batch was given up after 0.5 seconds"


def test_in_a_multi_grader_its_failure_is_named(tier: JailTier) -> None:
    raw = {
        "type": "multi",
        "graders": {"code": {"type": "python", "source": "def grade(sample, item):\n    return 1 / 0\n"}},
        "calculate_output": "code",
    }
    (result,) = build(parse_grader(raw, "grader"), jails.settings(tier)).grade([GraderSample({}, "")])
    assert result.sub_errors == {"code": "python_grader_runtime_error"}


def test_without_a_jail_code_is_refused() -> None:
    definition = parse_grader({"type": "python", "source": "def grade(sample, item):\n    return 1\n"}, "grader")
    with pytest.raises(GraderError, match="run code and are turned off on this server"):
        build(definition, GraderSettings())


def test_known_libraries_are_loaded_once_per_jail() -> None:
    assert libraries_of("import numpy as np\nimport os\n  from sympy.core import S\n# import pandas") == [
        "numpy",
        "sympy",
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_what_the_hosted_service_offers_can_be_imported(tier: JailTier, package: str) -> None:
    definition = parse_grader({"type": "python", "source": f"import {module_of(package)}\n{GRADE}"}, "grader")
    assert faults(definition, GraderSettings(jail=tier)) == {}


def test_packages_of_the_extra_are_loaded_once_for_all_samples() -> None:
    modules = set(map(module_of, PACKAGES))
    assert set(libraries_of("".join(f"import {module}\n" for module in modules))) == modules


def test_packages_of_the_extra_work(tier: JailTier) -> None:
    source = """
import rapidfuzz, scipy.stats, sqlparse
from deepdiff import DeepDiff
from nltk.stem import PorterStemmer
from rouge_score import rouge_scorer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity
def grade(sample, item):
    said, meant = sample["output_text"], item["answer"]
    assert DeepDiff({"a": 1}, {"a": 1}) == {} and PorterStemmer().stem("regions") == "region"
    assert sqlparse.format("select 1", keyword_case="upper") == "SELECT 1"
    assert rapidfuzz.fuzz.ratio(said, meant) == 100
    assert rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score(meant, said)["rougeL"].fmeasure == 1
    assert scipy.stats.pearsonr([1, 2, 3], [2, 4, 6]).statistic > 0.99
    return cosine_similarity(TfidfVectorizer().fit_transform([said, meant]))[0, 1]
"""
    definition = parse_grader({"type": "python", "source": source}, "grader")
    (result,) = build(definition, GraderSettings(jail=tier)).grade(
        [GraderSample({"answer": "the answer"}, "the answer")]
    )
    assert result.detail is None
    assert result.reward == pytest.approx(1.0)


def test_data_of_nltk_is_looked_for_beside_the_libraries(tier: JailTier) -> None:
    source = """
import nltk, os
def grade(sample, item):
    return nltk.data.path[0] == item["folder"] and os.path.isdir(os.path.dirname(item["folder"]))
"""
    assert grade(tier, source, GraderSample({"folder": f"{sys.prefix}/lib/nltk_data"}, "")) == [Grade(1.0)]


def fault_of(tier: JailTier, source: str, **fields: Any) -> str | None:
    definition = parse_grader({"type": "python", "source": source}, "grader")
    return faults(definition, jails.settings(tier, **fields)).get("grader.source")


@pytest.mark.parametrize(
    "source",
    [
        "import nowhere\n" + GRADE,
        "from nowhere import anything\n" + GRADE,
        "import json.nowhere\n" + GRADE,
        "from json import nowhere\n" + GRADE,
        "def grade(sample, item):\n    import nowhere\n    return 1.0\n",
        "def grade(sample, item):\n    return helper()\ndef helper():\n    from json import nowhere\n",
        "class Scorer:\n    def score(self):\n        import nowhere\n" + GRADE,
        "import importlib\nimportlib.import_module('nowhere')\n" + GRADE,
    ],
)
def test_what_cannot_be_imported_is_found_without_an_answer(tier: JailTier, source: str) -> None:
    fault = fault_of(tier, source)
    assert fault is not None
    assert "Error: " in fault.splitlines()[-1]
    assert "nowhere" in fault.splitlines()[-1]


@pytest.mark.parametrize(
    "source",
    [
        GRADE,
        "from __future__ import annotations\nimport json, collections.abc as abc\n" + GRADE,
        "try:\n    import nowhere\nexcept ImportError:\n    nowhere = None\n" + GRADE,
        "def grade(sample, item):\n    try:\n        import nowhere\n    except ImportError:\n        return 1\n",
        "def grade(sample, item):\n    if item['rare']:\n        import nowhere\n    return 1\n",
        "def has():\n    import nowhere\ntry:\n    has()\nexcept ImportError:\n    pass\n" + GRADE,
        "def grade(sample, item):\n    return item['what this row lacks']\n",
        "grade = lambda sample, item: 1.0\n",
    ],
)
def test_a_grader_that_can_be_loaded_has_no_fault(tier: JailTier, source: str) -> None:
    assert fault_of(tier, source) is None


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("1 / 0\n" + GRADE, "ZeroDivisionError"),
        ("grade = 5\n", "the source defines no function 'grade'"),
        ("import os\nos._exit(3)\n" + GRADE, "exit code 3"),
        ("raise SystemExit\n" + GRADE, "SystemExit"),
        ("while True: pass\n" + GRADE, "it was stopped after 3 seconds"),
    ],
)
def test_a_grader_that_cannot_be_loaded_says_why(tier: JailTier, source: str, says: str) -> None:
    assert says in (patiently(lambda: fault_of(tier, source, seconds=3.0)) or "")


def patiently(ask: Callable[[], str | None]) -> str | None:
    """What ``ask`` says once the machine had time for it."""
    for _ in range(20):
        with suppress(JailError):
            return ask()
    return ask()


def test_a_load_that_only_waits_says_nothing_of_the_grader(tier: JailTier) -> None:
    with pytest.raises(JailError, match=r"the grader was not loaded: it was stopped after 0\.7 seconds"):
        fault_of(tier, "import time\ntime.sleep(60)\n" + GRADE, seconds=0.7)


def test_the_faults_of_a_multi_grader_name_their_part(tier: JailTier) -> None:
    sources = {"good": GRADE, "bad": "import nowhere\n" + GRADE}
    parts = {name: {"type": "python", "source": source} for name, source in sources.items()}
    definition = parse_grader({"type": "multi", "graders": parts, "calculate_output": "good + bad"}, "grader")
    assert faults(definition, jails.settings(tier)).keys() == {"grader.graders.bad.source"}


def test_where_no_jail_holds_nothing_is_said_of_the_grader(tier: JailTier, tmp_path: Path) -> None:
    with pytest.raises(JailError, match="control group"):
        fault_of(tier, GRADE, jail_cgroup=tmp_path / "none")
