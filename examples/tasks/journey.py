"""Longer answers over a byte-level BPE vocabulary of 2,048 tokens, in which much is free and a little decides.

A problem gives a number and what to add and take. The answer tells the way in prose: after every step comes a remark of
made words, which may be any, and then the number reached. The careless pupil repeats the number before. An answer has
some 80 tokens; the remarks' have an entropy of several nats, and the digits decide.
"""

import random
from functools import cache
from itertools import product
from typing import TYPE_CHECKING

from examples.tasks.task import CHAT_TEMPLATE, Problem, Recipe, Task, ends_with
from workers.demo import SPECIAL, for_chats

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048
STEPS = 3
REMARK = (4, 9)
"""Words of a remark, at least and at most."""
SYLLABLES = [first + second for first, second in product("bdfgklmnprstvz", "aeiou")]
MADE = random.Random(0).sample(["".join(parts) for parts in product(SYLLABLES, repeat=3)], 1500)


def write(dice: random.Random, right: float) -> Problem:
    true = kept = dice.randrange(20, 70)
    told, way = [f"Start at {kept}."], [f"We start at {kept} ."]
    for _ in range(STEPS):
        takes, change = dice.random() < 0.5, dice.randrange(2, 10)
        told.append(f"Take {change}." if takes else f"Add {change}.")
        sign = -1 if takes else 1
        true += sign * change
        before, kept = kept, kept + sign * change if dice.random() < right else kept
        # The first words of the list are the most common.
        remark = " ".join(MADE[int(len(MADE) * dice.random() ** 2)] for _ in range(dice.randint(*REMARK)))
        way.append(f"{remark.capitalize()}. {before} {'minus' if takes else 'plus'} {change} makes {kept} .")
    return Problem(" ".join(told), f"{' '.join(way)} The answer is {kept} .", str(true))


@cache
def tokenizer() -> "PreTrainedTokenizerFast":
    """Trained on the task's own text; every digit is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    dice = random.Random("tokenizer")
    texts = [write(dice, 0.5) for _ in range(3000)]
    made.train_from_iterator([text for each in texts for text in (each.question, each.answer)], trainer)
    return for_chats(made, CHAT_TEMPLATE)


TASK = Task(
    name="journey",
    about="some 80 tokens of a byte-level BPE, most of them free, right in some 10 %",
    write=write,
    tokenizer=tokenizer,
    grader=ends_with("The answer is"),
    max_completion_tokens=128,
    recipe=Recipe(right_at_first=0.8, right_later=0.47, updates=2000, layers=3, batch=24, context=192),
)
