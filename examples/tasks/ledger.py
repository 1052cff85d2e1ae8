"""Near-certain text in which a few tokens decide, as language models write it.

A problem tells who has how many of what and who brings or takes some. The answer keeps the book in words and ends with
the result, which alone is graded. Of its 40 tokens all but two are certain: phrases, and names and numbers that are
copied. The two are the new balances; the careless pupil copies the old balance instead, and goes on with it.
"""

import random

from examples.tasks.task import Problem, Recipe, Task, ends_with, word_tokenizer

NAMES = [
    "ana",
    "ben",
    "carla",
    "dan",
    "eva",
    "finn",
    "greta",
    "hugo",
    "ida",
    "jan",
    "kim",
    "lars",
    "mia",
    "noah",
    "olga",
    "paul",
    "rosa",
    "sam",
    "tina",
    "uwe",
    "vera",
    "wim",
]
THINGS = [
    "apples",
    "books",
    "cups",
    "coins",
    "eggs",
    "forks",
    "hats",
    "jars",
    "keys",
    "lamps",
    "maps",
    "nuts",
    "pens",
    "plums",
    "rings",
    "stones",
]
WORDS = "has brings takes more away . , ? how many are left now at first then plus minus which makes so the answer is"
EVENTS = 2
MOST = 9
"""Of what somebody has at first, brings or takes."""


def write(dice: random.Random, right: float) -> Problem:
    owner, thing = dice.choice(NAMES), dice.choice(THINGS)
    true = kept = dice.randint(1, MOST)
    told = [f"{owner} has {kept} {thing} ."]
    book = [f"at first {owner} has {kept} {thing} ."]
    for _ in range(EVENTS):
        name = dice.choice(NAMES)
        # What is taken is there, whether the book is right or not.
        there = min(true, kept, MOST)
        takes = there > 0 and dice.random() < 0.5
        change = dice.randint(1, there if takes else MOST)
        told.append(f"{name} takes {change} away ." if takes else f"{name} brings {change} more .")
        true += -change if takes else change
        before, kept = kept, (kept - change if takes else kept + change) if dice.random() < right else kept
        verb, sign = ("takes", "minus") if takes else ("brings", "plus")
        book.append(f"then {name} {verb} {change} , {before} {sign} {change} , which makes {kept} .")
    question = f"{' '.join(told)} how many {thing} are left now ?"
    return Problem(question, f"{' '.join(book)} so the answer is {kept} .", str(true))


TASK = Task(
    name="ledger",
    about="near-certain text with two deciding tokens, right in some 20 %",
    write=write,
    tokenizer=lambda: word_tokenizer([*WORDS.split(), *NAMES, *THINGS, *map(str, range((EVENTS + 1) * MOST + 1))]),
    grader=ends_with("so the answer is"),
    max_completion_tokens=56,
    recipe=Recipe(right_at_first=0.8, right_later=0.45, updates=1200, layers=3, batch=32),
)
