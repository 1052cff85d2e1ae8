"""What the tasks ``additions`` and ``rare`` share: sums of two-digit numbers, and who copies the first one instead."""

import random

from examples.tasks.task import Problem

MAX_ANSWER = 8
"""Tokens, of which a right answer has three or four."""


def write(dice: random.Random, right: float) -> Problem:
    a, b = dice.randrange(10, 100), dice.randrange(10, 100)
    answer = a + b if dice.random() < right else a
    return Problem(f"{a}+{b}=", str(answer), str(a + b))
