"""Problems with one answer into rows: those of GSM8K, DAPO-Math, Eurus' mathematics and the test sets.

Each function takes a row as it is downloaded and returns one with ``messages`` and ``answer``, or raises
``UnusableError``.
"""

import re
from typing import Any

from examples.paper.sources import Source

Row = dict[str, Any]

GSM8K_INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'
"""verl's, whose reward for GSM8K reads what is behind the hashes."""
BOXED_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""For prompts that ask for no box."""
DAPO_BEGIN = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_END = '\n\nRemember to put your answer on its own line after "Answer:".'
QUESTIONS, ANSWERS = ("problem", "question", "Problem", "Question"), ("answer", "final_answer", "Answer")
"""Columns of test sets, in the order in which they are looked for."""
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


class UnusableError(ValueError):
    """Why a row is left out, in words that are the same for every such row."""


def gsm8k(source: Source) -> Row:
    """A row of ``openai/gsm8k``, whose ``answer`` ends with ``#### 1,234``, or what verl makes of it."""
    if "prompt" in source:
        messages, answer = messages_of(source), ground_truth(source)
    else:
        messages = [_message("user", f"{_question(source)} {GSM8K_INSTRUCTION}")]
        _, hashes, behind = str(source.get("answer")).rpartition("####")
        answer = behind if hashes else ""
    number = answer.strip().replace(",", "").removeprefix("$")
    if not _NUMBER.fullmatch(number):
        raise UnusableError("the answer does not end with #### and a number")
    return _row(messages, number)


def chat(source: Source) -> Row:
    """A row of verl's format: ``prompt`` is a list of messages, the answer is ``reward_model.ground_truth``.

    The prompt stays as it is if it asks for a box, as those of the authors' files and of Eurus do. DAPO-Math's own asks
    for a last line "Answer: …"; it is asked for a box instead.
    """
    messages = messages_of(source)
    if not any("\\boxed" in message["content"] for message in messages):
        question = messages[-1]["content"].removeprefix(DAPO_BEGIN).removesuffix(DAPO_END)
        messages[-1] = _message("user", _boxed(question))
    return _row(messages, ground_truth(source))


def problem(source: Source) -> Row:
    """A row of a test set: a question, and an answer in a column of its own or in the last box of ``solution``."""
    question = _question(source)
    found = next((source[name] for name in ANSWERS if source.get(name) not in (None, "", [])), None)
    answer = last_box(str(source.get("solution") or "")) if found is None else _text(found)
    if answer is None:
        raise UnusableError("there is no answer, and no box in the solution")
    return _row([_message("user", _boxed(question))], answer)


def messages_of(source: Source) -> list[dict[str, str]]:
    """The conversation of a row in verl's format, of which the user has the last word."""
    messages = [_message(each.get("role"), each.get("content")) for each in source.get("prompt") or []]
    if not messages or messages[-1]["role"] != "user" or not all(message["content"] for message in messages):
        raise UnusableError("the prompt is no conversation that ends with the user")
    return messages


def ground_truth(source: Source) -> str:
    found = (source.get("reward_model") or {}).get("ground_truth")
    if found is None:
        raise UnusableError("there is no ground truth")
    return _text(found)


def last_box(text: str) -> str | None:
    r"""What is in the last ``\boxed{…}`` of ``text``, None where there is none or its brace is never closed."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin, depth = start + len("\\boxed{"), 1
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position]
    return None


def _question(source: Source) -> str:
    found = next((source[name] for name in QUESTIONS if source.get(name)), None)
    if found is None:
        raise UnusableError("there is no question")
    return str(found)


def _row(messages: list[dict[str, str]], answer: str) -> Row:
    if not answer.strip():
        raise UnusableError("the answer is empty")
    return {"messages": messages, "answer": answer.strip()}


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _boxed(question: str) -> str:
    return f"{question.strip()}\n\n{BOXED_INSTRUCTION}"


def _text(answer: Any) -> str:
    """An answer as LaTeX. Whole numbers may come as floats, and several answers as a list."""
    if isinstance(answer, list):
        return ", ".join(_text(each).strip().strip("$") for each in answer)
    if isinstance(answer, float) and answer.is_integer():
        return str(int(answer))
    return str(answer)
