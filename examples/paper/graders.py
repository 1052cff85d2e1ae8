"""How the answers to each data set are graded, by the name that ``runs.yaml`` has for it."""

from typing import Any

GSM8K_SOURCE = '''\
import re

NUMBER = re.compile(r"#### (-?[0-9.,]+)")

def grade(sample, item):
    """1 where the last number behind four hashes is the row's, its thousands separated or not."""
    found = NUMBER.findall(sample["output_text"])
    return float(bool(found) and found[-1].replace(",", "") == item["answer"])
'''

GRADERS: dict[str, dict[str, Any]] = {
    "gsm8k": {"type": "python", "name": "gsm8k", "source": GSM8K_SOURCE},
    "math": {"type": "math_verify", "name": "math", "reference": "{{item.answer}}"},
    # The share of a row's tests that pass, each of which has ten seconds.
    "code": {"type": "code_tests", "name": "code", "tests": "{{item.tests}}", "partial": True, "timeout_seconds": 10.0},
}
