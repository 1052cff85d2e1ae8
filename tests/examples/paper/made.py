"""Made rows in the formats of the public data sets, the ugly ones among them, and solutions of those that are good."""

import json
from pathlib import Path
from typing import Any

from examples.paper.mathematics import DAPO_BEGIN, DAPO_END

Source = dict[str, Any]

SYSTEM = "When tackling complex reasoning tasks, think first. Present the answer in \\boxed{}."
CODE_REQUEST = (
    "\n\nWrite Python code to solve the problem. Present the code in \n```python\nYour code\n```\nat the end."
)

GSM8K: list[Source] = [
    {"question": "A farm has 1,200 hens and 34 cows. How many animals?", "answer": "1200 + 34 = 1234.\n#### 1,234"},
    {"question": "Ann owes 5 dollars and has none. What does she have?", "answer": "She has <<0-5=-5>>-5.\n#### -5"},
    {"question": "What is half of 5?", "answer": "5 / 2 = 2.5\n#### 2.5"},
    {"question": "How much is 2 and 2?", "answer": "It is $4.\n#### $4"},
    {"question": "How many?", "answer": "Nobody wrote it down: 7"},
    {"question": "How many are there?", "answer": "#### several"},
]


def chat(data_source: str, prompt: list[dict[str, str]], truth: Any, ability: str, **extra: Any) -> Source:
    """A row of verl's format, as DAPO-Math and Eurus have it."""
    return {
        "data_source": data_source,
        "prompt": prompt,
        "ability": ability,
        "reward_model": {"ground_truth": truth, "style": "rule"},
        "extra_info": extra,
    }


def asked(content: str, system: str | None = None) -> list[dict[str, str]]:
    before = [] if system is None else [{"content": system, "role": "system"}]
    return [*before, {"content": content, "role": "user"}]


def dapo(question: str, truth: Any, index: str) -> Source:
    return chat("math_dapo", asked(DAPO_BEGIN + question + DAPO_END), truth, "MATH", index=index)


DAPO: list[Source] = [
    dapo("Find $1 + 1$.", "2", "a"),
    dapo("Find $1 + 1$.", "2", "a"),
    dapo("What is the remainder of $10^6$ by $7$?", "1", "b"),
    dapo("Find $1 + 1$.", "2", "c"),
    dapo("What is $\\frac{1}{2} + \\frac{1}{4}$?", "\\frac{3}{4}", "d"),
    dapo("Find the answer that nobody gave.", "", "e"),
    dapo("Find the answer that is missing.", None, "f"),
    dapo("What is $-3 \\cdot 4$?", "-12", "g"),
]

STDIN = {"inputs": ["1 2\n", "30 12\n"], "outputs": ["3\n", "42\n"]}
LINES = {"inputs": [["2", "a", "b"], ["1", "c"]], "outputs": [["b", "a"], ["c"]]}
FUNCTION = {"fn_name": "two_sum", "inputs": ["[2, 7, 11]\n9", "[3, 3]\n6"], "outputs": ["[0, 1]", "[0, 1]"]}
METHOD = {"fn_name": "reverse", "inputs": ['"abc"', '""'], "outputs": ['"cba"', '""']}
PRINTED = {"fn_name": "shout", "inputs": ['"abc"'], "outputs": ["ABC!"]}
MANY = {"inputs": [str(n) for n in range(25)], "outputs": [str(2 * n) for n in range(25)]}
LARGE = {"inputs": ["x" * 400_000] * 3, "outputs": ["400000"] * 3}


def program(question: str, tests: Any, source: str = "taco", system: str | None = SYSTEM) -> Source:
    truth = tests if isinstance(tests, str) or tests is None else json.dumps(tests)
    return chat(source, asked(question + CODE_REQUEST, system), truth, "code", index=0, split="train")


CODE: list[Source] = [
    program("Add two numbers.", STDIN, "codecontests"),
    program("Print the lines in reverse order.", LINES, "apps"),
    program("Find two that add up to the target.", FUNCTION),
    program("Reverse a text; write a class Solution.", METHOD),
    program("Shout a text.", PRINTED),
    program("Double a number.", MANY, "codeforces"),
    program("How long is the line?", LARGE),
]
UGLY_CODE: list[Source] = [
    program("There is nothing to pass.", {"inputs": [], "outputs": []}),
    program("One is missing.", {"inputs": ["1", "2"], "outputs": ["1"]}),
    program("It is broken.", "{inputs: ["),
    program("It is no object.", "[1, 2]"),
    program("It has no name.", {"fn_name": "not a name", "inputs": ["1"], "outputs": ["1"]}),
    program("Its arguments are none.", {"fn_name": "f", "inputs": ["[1,"], "outputs": ["1"]}),
    program("One is too large.", {"inputs": ["x" * 1_100_000], "outputs": ["1"]}),
    program("It has none.", None),
]
RIGHT: dict[str, str] = {
    "Add": "a, b = map(int, input().split())\nprint(a + b)",
    "Print": "n = int(input())\nlines = [input() for _ in range(n)]\nprint('\\n'.join(reversed(lines)))",
    "Find": (
        "def two_sum(numbers, target):\n"
        "    for i, a in enumerate(numbers):\n"
        "        for j in range(i + 1, len(numbers)):\n"
        "            if a + numbers[j] == target:\n"
        "                return [i, j]"
    ),
    "Reverse": "class Solution:\n    def reverse(self, text: str) -> str:\n        return text[::-1]",
    "Shout": "def shout(text):\n    return text.upper() + '!'",
    "Double": "print(2 * int(input()))",
    "How": "print(len(input()))",
}
"""A program for each of ``CODE``, by the first word of its question."""
WRONG = {
    "Add": "print(3)",
    "Print": "print(input())",
    "Find": "def two_sum(numbers, target):\n    return [1, 0]",
    "Reverse": "class Solution:\n    def reverse(self, text: str) -> str:\n        return text + 'x'",
    "Shout": "def shout(text):\n    return text",
    "Double": "print(1 + int(input()))",
    "How": "print(400001)",
}
"""Programs that are wrong."""
PASSED_BY_WRONG = {"Add": 1 / 2, "Double": 1 / 10}
"""The share of the tests that some of them pass nevertheless."""

EURUS_MATH: list[Source] = [
    chat(
        source,
        asked(f"{question}\n\nPresent the answer in LaTex format: \\boxed{{Your answer}}", SYSTEM),
        truth,
        "math",
        index=number,
        split="train",
    )
    for number, (source, question, truth) in enumerate(
        [
            ("numina_cn_k12", "Solve $x^2 = 2$ for positive $x$.", "\\sqrt{2}"),
            ("numina_olympiads", "Factor $n^2 - 1$.", "(n-1)(n+1)"),
            ("numina_synthetic_math", "Which interval is it?", "[0, 1)"),
        ]
    )
]

MATH500: Source = {
    "problem": "Find $2^{5}$.",
    "solution": "It is $\\boxed{32}$.",
    "answer": "32",
    "subject": "Algebra",
    "level": 1,
}
AMC: Source = {"id": 0, "problem": "How many primes are below 500?", "answer": 95.0, "url": "https://example.org"}
AIME2024: Source = {
    "id": 60,
    "problem": "Find $m+n$.",
    "solution": "So $\\boxed{204}$.",
    "answer": "204",
    "year": "2024",
}
OMNI: Source = {
    "domain": ["Algebra"],
    "difficulty": 8.0,
    "problem": "Find all $a$.",
    "solution": "…",
    "answer": "$\\frac{1}{3}$",
}
OLYMPIAD: Source = {"question": "Find both roots.", "final_answer": ["$2$", "$-3$"], "is_multiple_answer": True}
MINERVA: Source = {"question": "How far, in metres?", "answer": "1.5e3"}
BOXED_ONLY: Source = {
    "problem": "Find $k$.",
    "solution": "First $\\boxed{1}$ seems right, but it is $\\boxed{\\frac{a}{b}}$.",
}
NO_BOX: Source = {"problem": "Find $l$.", "solution": "It is left to the reader."}
NEVER_CLOSED: Source = {"problem": "Find $r$.", "solution": "It is $\\boxed{\\frac{1}{2$."}
NO_QUESTION: Source = {"answer": "3"}


def write_parquet(path: Path, rows: list[Source]) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_jsonl(path: Path, rows: list[Source]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
