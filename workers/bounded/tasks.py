"""What may be asked for, and its bounds. A request is a list of tasks as JSON; answers are JSON lines, one a task.

Answers that do not come belong to the first task without one: the process ended over it.
"""

from typing import Any, Literal, NotRequired, TypedDict

HERE = b"here\n"
"""What the process of a request says first. Without it, the request has not been taken."""
LEARN = b"learn"
CPU_SECONDS = 2
"""For one task; the kernel counts whole seconds, so that it may have one more."""
MEMORY_BYTES = 512 << 20
"""What the process may take beyond what it begins with."""
MAX_CHARACTERS = 8 << 20
"""Longest text of a dataset's row."""


class Render(TypedDict):
    """Write messages as one text, with a chat template."""

    kind: Literal["render"]
    template: str
    special_tokens: dict[str, Any]
    """The tokenizer's, by the names under which templates know them."""
    messages: list[dict[str, Any]]
    """As ``workers.bounded.messages`` makes them."""
    tools: Any
    answer_next: bool
    """Whether the text goes on to where an answer of the assistant begins."""
    most: int
    """Characters that it may write."""
    values: dict[str, Any]
    """What else the template is told, by the names it reads."""
    now: str | None
    """The time that it is told, in ISO format; None is the machine's own."""


class Names(TypedDict):
    """Find the names that a chat template reads, beside those that it defines itself."""

    kind: Literal["names"]
    template: str


class Compile(TypedDict):
    """Try whether answers can be held to a JSON schema."""

    kind: Literal["compile"]
    schema: dict[str, Any]


Task = Render | Names | Compile


class TaskResult(TypedDict):
    """The text of a rendering or the names that a template reads, or why the task cannot be done."""

    text: NotRequired[str]
    names: NotRequired[list[str]]
    refused: NotRequired[str]
    exceeded: NotRequired[bool]
    """Whether it was refused for what it takes, so that another like it is better not tried."""


def exceeded(task: Task) -> TaskResult:
    """What is answered to a task that the process did not survive."""
    bounds = f"more than {CPU_SECONDS} seconds or {MEMORY_BYTES >> 20} MB"
    if task["kind"] == "compile":
        return {"refused": f"it takes {bounds}", "exceeded": True}
    if task["kind"] == "render":
        bounds = f"{bounds}, or writes more than {task['most']} characters"
    return {"refused": f"the model's chat template takes {bounds}", "exceeded": True}
