"""The program in an answer, for answers as models write them."""

import time

import pytest

from workers.graders.programs import does_something, names_called, program_of

GOOD = "def twice(x):\n    return 2 * x\n"
BAD = "def twice(x):\n    return 3 * x\n"
SESSION = ">>> twice(4)\n8\n"
TRACEBACK = "Traceback (most recent call last):\n  ..."
DOCUMENTED = 'def twice(x):\n    """\n    ```\n    twice(4)\n    ```\n    """\n    return 2 * x\n'
INDENTED = "    def twice(x):\n        return 2 * x\n"


def fence(text: str, language: str = "", mark: str = "```") -> str:
    return f"{mark}{language}\n{text.rstrip()}\n{mark}\n"


PY, PLAIN = fence(GOOD, "python"), fence(GOOD)

ANSWERS = {
    "no fence": GOOD,
    "no fence, indented": INDENTED,
    "tagged": PY,
    "py": fence(GOOD, "py"),
    "python3": fence(GOOD, "python3"),
    "Python 3.12": fence(GOOD, "Python3.12"),
    "capitals": fence(GOOD, "PYTHON"),
    "a space before the language": fence(GOOD, " python "),
    "a title": fence(GOOD, 'python title="twice.py"'),
    "a file name": fence(GOOD, "twice.py"),
    "language and file name": fence(GOOD, "python:twice.py"),
    "attributes": fence(GOOD, "{.python .numberLines}"),
    "untagged": PLAIN,
    "tagged code": fence(GOOD, "code"),
    "prose around": f"Here it is:\n\n{PY}\nIt doubles `x`.",
    "a shell command first": f"Install it:\n{fence('pip install numpy', 'bash')}\n{PY}",
    "a shell command last": f"{PY}\nRun it:\n{fence('python twice.py', 'bash')}",
    "a shell command last, both untagged": f"{PLAIN}\nRun it:\n{fence('python twice.py')}",
    "output last": f"{PY}\nOutput:\n{fence('8')}",
    "output last, tagged": f"{PY}\nOutput:\n{fence('8', 'text')}",
    "output last, both untagged": f"{PLAIN}\nprints\n{fence('8')}",
    "a list as output": f"{PLAIN}\nprints\n{fence('[8, 10]')}",
    "a label as output": f"{PLAIN}\nprints\n{fence('Result: 8')}",
    "words as output": f"{PLAIN}\nprints\n{fence('The result is 8.')}",
    "output said to be Python": f"{PY}\nprints\n{fence('8', 'python')}",
    "JSON last": f"{PY}\n{fence('[1, {}]', 'json')}",
    "a traceback last": f"{PY}\n{fence(TRACEBACK)}",
    "a session last": f"{PY}\n{fence(SESSION, 'python')}",
    "a session tagged pycon": f"{PY}\n{fence(SESSION, 'pycon')}",
    "a use of it last": f"{PY}\nFor example:\n{fence('print(twice(4))', 'python')}",
    "another language last": f"{PY}\nIn JavaScript:\n{fence('const twice = x => 2 * x', 'javascript')}",
    "another language first": f"{fence('int twice(int x) { return 2 * x; }', 'c')}\n{PY}",
    "a correction": f"{fence(BAD, 'python')}\nNo, that is wrong.\n{PY}",
    "an untagged correction of an untagged": f"{fence(BAD)}\nNo, that is wrong.\n{PLAIN}",
    "untagged junk after tagged": f"{PY}\n{fence(BAD)}",
    "tildes": fence(GOOD, "python", "~~~"),
    "four backticks": fence(GOOD, "python", "````"),
    "within a longer fence": fence(PY, "", "````"),
    "within markdown": fence(f"# Twice\n\n{PY}", "markdown", "````"),
    "within markdown of the same length": f"```markdown\n# Twice\n\n{PY}\nThat is all.\n```\n",
    "in tildes within backticks": fence(fence(GOOD, "python", "~~~"), "md"),
    "a fence in a docstring": fence(
        'def twice(x):\n    """\n    ```\n    twice(4)\n    ```\n    """\n    return 2 * x\n', "python"
    ),
    "a fence at the margin of a docstring": fence(f'"""Use:\n```\ntwice(4)\n```\n"""\n{GOOD}', "python"),
    "in a list": "1. Write this:\n   ```python\n   def twice(x):\n       return 2 * x\n   ```\n2. Run it.",
    "behind a list marker": "- ```python\n  def twice(x):\n      return 2 * x\n  ```",
    "indented by a tab": "\t```python\n\tdef twice(x):\n\t    return 2 * x\n\t```",
    "indented within a fence": fence(INDENTED, "python"),
    "never closed": f"```python\n{GOOD}",
    "closed behind the last line": f"```python\n{GOOD.rstrip()}```\nThere.",
    "carriage returns": PY.replace("\n", "\r\n"),
    "a closing fence that is longer": f"```python\n{GOOD}`````",
    "reasoning with inline code first": f"We need `twice`. ```x``` is no block.\n\n{PY}",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
def test_the_program_is_found(answer: str) -> None:
    space: dict[str, object] = {}
    exec(program_of(answer, names_called(["twice(4)"])), space)
    assert space["twice"](4) == 8  # type: ignore[operator]


@pytest.mark.parametrize(
    "answer",
    [
        f"{PY}\nBetter:\n```python\ndef twice(x):\n    return (",
        f"{PY}\nBetter:\n{fence(BAD, 'python')}",
        fence(GOOD, "javascript"),
        fence(GOOD, "text"),
        "I cannot do that.",
        "",
        fence("8"),
    ],
    ids=["cut short", "wrong in the end", "another language", "text", "prose", "nothing", "output only"],
)
def test_no_other_program_stands_in(answer: str) -> None:
    space: dict[str, object] = {}
    try:
        exec(program_of(answer, {"twice"}), space)
    except SyntaxError:
        return
    assert "twice" not in space or space["twice"](4) != 8  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ("8", False),
        ("[1, 2]", False),
        ("a: 1", False),
        ("x", False),
        ("print(8)", True),
        ("x = 1", True),
        ("8 9", False),
    ],
)
def test_what_a_program_is(text: str, does: bool) -> None:
    assert does_something(text) is does


def test_names_that_calls_need() -> None:
    assert names_called(["add(1, len([2]))", "sorted(two(3))", "Box().open(1)", "x +"]) == {"add", "two", "Box"}


@pytest.mark.parametrize(
    "part", ["```\n", "```python\n(\n```\n", "~~~a\n", "````md\n", "- ```\nx y\n", "(", "```python\n" + "(" * 50]
)
def test_a_hostile_answer_takes_little_time(part: str) -> None:
    before = time.process_time()
    program_of(part * (100_000 // len(part)), {"f"})
    assert time.process_time() - before < 30
