"""The Python program in an answer, as models write them: fenced code between prose, examples and what they print.

Fences are CommonMark's and what models make of them: of backticks or tildes, three or more, in list items, around other
fences, behind the last line of code, never closed. The program is the last block that is said to be Python; where none
is, the last without a language that does something; and the whole answer where it has no blocks.
"""

import ast
import builtins
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from textwrap import dedent

MAX_CHARACTERS = 200_000
"""Longer texts are not parsed to find out whether they are programs; they are run."""
MAX_CLOSINGS = 5
"""Fences that are tried as the end of one block."""
MAX_NESTING = 4

_OPENING = re.compile(r"(?P<indent>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?)(?P<fence>`{3,}|~{3,})(?P<info>.*)")
_PYTHON = re.compile(r"(?:i?python|py)[\d.]*")
_NAMELESS = {"", "code", "main", "program", "solution", "script", "answer"}
_MARKUP = {"markdown", "md", "mdx"}
_SESSION = re.compile(r"\s*(?:>>>|In \[\d+\]:)")


@dataclass(frozen=True)
class _Block:
    language: str
    text: str

    @property
    def is_python(self) -> bool:
        # A session shows how a program is used, and is none.
        return _is_python(self.language) and not _SESSION.match(self.text)


def program_of(answer: str, names: Collection[str] = ()) -> str:
    """The program in ``answer``; of several the last that defines ``names``, where one does.

    Empty where there are blocks and none of them can be the program.
    """
    blocks = list(_blocks(answer.split("\n")))
    if not blocks:
        return _outdented(answer)
    python = [block.text for block in blocks if block.is_python]
    if python and _parse(python[-1]) is None:
        # Cut short, it is still what the answer ends with.
        return python[-1]
    candidates = python or [block.text for block in blocks if block.language in _NAMELESS]
    programs = [text for text in candidates if does_something(text)]
    return next(
        (text for text in reversed(programs) if names and _defines(text, names)), programs[-1] if programs else ""
    )


def does_something(text: str) -> bool:
    """Whether ``text`` is Python and more than ``8``, ``[1, 2]`` or ``Result: 8``, which are what programs print."""
    tree = _parse(text)
    return tree is not None and not all(map(_is_idle, tree.body))


def names_called(expressions: Sequence[str]) -> set[str]:
    """The names that a program has to define for calls such as ``add(1, 2)``."""
    trees = [tree for tree in map(_parse, expressions) if tree is not None]
    functions = [node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {each.id for each in functions if isinstance(each, ast.Name)} - set(dir(builtins))


def _defines(text: str, names: Collection[str]) -> bool:
    return all(
        re.search(rf"\b(?:def|class|import|as)\s+{re.escape(name)}\b|\b{re.escape(name)}\s*[=,:]", text)
        for name in names
    )


def _is_idle(statement: ast.stmt) -> bool:
    """Whether a statement computes nothing: a literal, a name, or an annotation without a value."""
    if isinstance(statement, ast.AnnAssign):
        return statement.value is None
    return isinstance(statement, ast.Expr) and not any(isinstance(node, ast.Call) for node in ast.walk(statement))


def _parse(text: str) -> ast.Module | None:
    """None where it is not Python, or too long to find out here."""
    if len(text) > MAX_CHARACTERS:
        return None
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _outdented(text: str) -> str:
    return dedent(text) if _parse(text) is None else text


def _blocks(lines: Sequence[str], depth: int = 0) -> Iterator[_Block]:
    """The fenced blocks in order. One that holds blocks of Python gives way to what it holds."""
    number = 0
    while number < len(lines):
        opening = _OPENING.fullmatch(lines[number].rstrip())
        number += 1
        if opening is None or "`" in opening["info"]:
            continue
        language = _language(opening["info"])
        inside, number = _inside(lines, number, opening, is_code=_is_python(language) or language in _NAMELESS)
        nested = list(_blocks(inside, depth + 1)) if depth < MAX_NESTING and language in _MARKUP | _NAMELESS else []
        if any(block.is_python for block in nested):
            yield from nested
        else:
            yield _Block(language, _outdented("\n".join([*inside, ""])))


def _is_python(language: str) -> bool:
    return _PYTHON.fullmatch(language) is not None


def _language(info: str) -> str:
    """The language of ``python``, ``Python title="a.py"``, ``{.python .numberLines}`` or ``main.py``."""
    words = [word for word in re.split(r"[\s,:;{}=]+", info.strip().lower()) if word]
    first = words[0].removeprefix(".") if words else ""
    return "python" if first.endswith(".py") else first


def _inside(lines: Sequence[str], start: int, opening: re.Match[str], *, is_code: bool) -> tuple[list[str], int]:
    """The lines of a block that begins at ``start``, and the number of the line behind it.

    It ends at its first closing fence; but where it is code, at the first that makes Python of it, if one does: a
    docstring may hold a fence.
    """
    found: tuple[list[str], int] | None = None
    for inside, end in islice(_endings(lines, start, opening), MAX_CLOSINGS if is_code else 1):
        unindented = [_without_indent(line, len(opening["indent"])) for line in inside], end
        if not is_code or _parse("\n".join(unindented[0])) is not None:
            return unindented
        found = found or unindented
    return found or ([_without_indent(line, len(opening["indent"])) for line in lines[start:]], len(lines))


def _endings(lines: Sequence[str], start: int, opening: re.Match[str]) -> Iterator[tuple[list[str], int]]:
    fence = opening["fence"]
    for number in range(start, len(lines)):
        line = lines[number].rstrip()
        text = line.lstrip()
        before = text.rstrip(fence[0])
        if len(text) - len(before) < len(fence):
            continue
        if not before and len(line) - len(text) <= len(opening["indent"]) + 3:
            yield list(lines[start:number]), number + 1
        elif before and fence[0] == "`" and "`" not in before:
            yield [*lines[start:number], line.rstrip("`")], number + 1


def _without_indent(line: str, most: int) -> str:
    blank = len(line) - len(line.lstrip(" \t"))
    return line[min(blank, most) :]
