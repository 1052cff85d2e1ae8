"""Numbers as people and models write them, rewritten so that ``math-verify`` reads them; and which box is the answer.

``1e3``, ``1.5 × 10^3``, ``3 1/2``, ``12 345`` and ``12{,}345`` are read by it as products, as their last part, or not
at all. What is left alone here it knows: fractions, commas between thousands, units, percent, sets, intervals.
"""

import re
from decimal import Decimal
from fractions import Fraction

MAX_EXPONENT = 300
"""Powers of ten beyond this stay as they are written."""

_READ = dict.fromkeys("−–", "-") | {"⋅": "·", "∗": "*", "π": "\\pi "} | dict.fromkeys("\u00a0\u2007\u2009\u202f", " ")
_FRACTIONS = "½1/2 ⅓1/3 ⅔2/3 ¼1/4 ¾3/4 ⅕1/5 ⅖2/5 ⅗3/5 ⅘4/5 ⅙1/6 ⅚5/6 ⅛1/8 ⅜3/8 ⅝5/8 ⅞7/8"
_SIGNS = str.maketrans(_READ | {each[0]: f" {each[1:]} " for each in _FRACTIONS.split()})
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

_RAISED = re.compile("[⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
# These begin with a digit and look back from it: a search for digits is much quicker than one for what is before them.
_THOUSANDS = re.compile(r"\d(?<![\w.,^}]\d)\d{0,2}(?P<by>\{,\}|\\[,;: ]|\\!,\\!|~| )\d{3}(?:(?P=by)\d{3})*(?![\d/])")
_SCIENTIFIC = re.compile(
    r"""(?P<number>[\d.](?<![\w.^\\][\d.])(?:(?<=\.)\d+|(?<=\d)\d*(?:\.\d+)?))
        (?: [eE](?P<plain>[+-]?\d{1,4})(?!\w|\.\d)
          | \s*(?:\\times|\\cdot|[×·*]|(?<=\s)x(?=\s))\s*10\s*(?:\^|\*\*)\s*
            (?: \{\s*(?P<braced>[+-]?\d{1,4})\s*\} | \(\s*(?P<bracketed>[+-]?\d{1,4})\s*\)
              | (?P<bare>[+-]?\d{1,4})(?!\d|\.\d) ) )""",
    re.VERBOSE,
)
_MIXED = re.compile(
    r"""(?P<whole>\d(?<![\w.,^/\\}]\d)\d{0,8})
        (?: (?:[ ]|\\[ ,;:]|~)+(?P<over>\d{1,9})[ ]?/[ ]?(?P<under>\d{1,9})(?!\w|\.\d|[ ]?/)
          | (?:[ ]|\\[ ,;:]|~)*\\[dtc]?frac\s*
            (?: \{(?P<top>\d{1,9})\}\s*\{(?P<bottom>\d{1,9})\} | (?P<pair>\d\d)(?!\d) ) )""",
    re.VERBOSE,
)
_PLUS = re.compile(r"[={($:]\s*\+\s*(?=[\d.\\])")
_EXPONENT = re.compile(r"\d[eE]")
_BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
_BETWEEN = re.compile(r"[\s$,;.]*(?:\\text\{\s*)?(?:and|or|,|;)(?:\s*\})?[\s$]*(?:\\?[a-zA-Z]\w?\s*=\s*)?")
_MARKS = ("$", "\\(", "\\[")
_UNREAD = re.compile("[\\\\^π⁰¹²³⁴⁵⁶⁷⁸⁹]")
_FORMULA = re.compile(r"(?:\\[a-zA-Z]+|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])|[^a-zA-Z\n])+")


def rewritten(text: str) -> str:
    """``text`` with its numbers in a notation that is read, and the same values."""
    if not text.isascii():
        text = text.translate(_SIGNS)
        text = _RAISED.sub(lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _THOUSANDS.sub(lambda found: found[0].replace(found["by"], ""), text)
    text = _MIXED.sub(_improper, text) if "/" in text or "frac" in text else text
    text = _SCIENTIFIC.sub(_plain, text) if "10" in text or _EXPONENT.search(text) else text
    text = _PLUS.sub(lambda found: found[0][0], text) if "+" in text else text
    return text.lstrip().removeprefix("+")


def answer_in(text: str) -> str:
    """The part of an answer that counts: its last box, with those that it names along with it as in ``… or …``."""
    boxes = _boxes(text)
    if not boxes:
        lines = text.strip().split("\n")
        # A bare formula is not looked at by the library, which finds only numbers outside of marks.
        bare = len(lines) == 1 and _UNREAD.search(text) is not None and not any(mark in text for mark in _MARKS)
        return f"\\boxed{{{lines[0]}}}" if bare and _FORMULA.fullmatch(lines[0]) else text
    first = len(boxes) - 1
    while first > 0 and _BETWEEN.fullmatch(text, boxes[first - 1][1], boxes[first][0]):
        first -= 1
    contents = [text[text.index("{", start) + 1 : end - 1] for start, end in boxes[first:]]
    return " and ".join(f"\\boxed{{{content}}}" for content in contents)


def _boxes(text: str) -> list[tuple[int, int]]:
    """Where each box that is not within another starts and ends; one that is never closed is none."""
    found = list(_BOX.finditer(text))
    closings = _closings(text, found[0].start()) if found else {}
    boxes: list[tuple[int, int]] = []
    for each in found:
        end = closings.get(each.end() - 1)
        if end is not None and (not boxes or each.start() >= boxes[-1][1]):
            boxes.append((each.start(), end))
    return boxes


def _closings(text: str, start: int) -> dict[int, int]:
    """Of each opening brace from ``start`` on that is closed, the position behind the one that closes it."""
    opened: list[int] = []
    closings: dict[int, int] = {}
    position = start
    while position < len(text):
        if text[position] == "\\":
            position += 1
        elif text[position] == "{":
            opened.append(position)
        elif text[position] == "}" and opened:
            closings[opened.pop()] = position + 1
        position += 1
    return closings


def _plain(found: re.Match[str]) -> str:
    """A number in scientific notation, without a power."""
    exponent = int(found["plain"] or found["braced"] or found["bracketed"] or found["bare"])
    if abs(exponent) > MAX_EXPONENT:
        return found[0]
    return f"{Decimal(found['number']).scaleb(exponent):f}"


def _improper(found: re.Match[str]) -> str:
    """A mixed number as one fraction; something else that looks like it is left alone."""
    over, under = found["over"] or found["top"], found["under"] or found["bottom"]
    if found["pair"]:
        over, under = tuple(found["pair"])
    if not 0 < int(over) < int(under):
        return found[0]
    value = int(found["whole"]) + Fraction(int(over), int(under))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}" if "frac" in found[0] else str(value)
