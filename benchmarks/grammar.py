"""What it costs to hold answers to a JSON schema: the masks of a token, one by one and for a batch of rows.

    python -m benchmarks.grammar

The tokenizer is byte-level BPE with about as large a vocabulary as language models have, trained on this installation's
Python sources. Answers are objects of English sentences and numbers that fit the schema. One by one is how the trainer
makes the masks of a step's answers; batches are those of the transformers engine, which asks several processors.
"""

import argparse
import json
import random
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from benchmarks import report
from workers.rollouts.grammar import Constraints, Grammar, Grammars

VOCABULARY, ANSWERS, SENTENCES = 100_000, 32, 4
SCHEMA = {
    "type": "object",
    "properties": {
        "steps": {"type": "array", "items": {"type": "string", "maxLength": 400}},
        "verdict": {"enum": ["right", "wrong", "unclear"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["steps", "verdict", "score"],
    "additionalProperties": False,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    bpe.train([str(path) for path in Path(sysconfig.get_path("purelib"), "transformers").rglob("*.py")], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")


def answers(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    chosen = random.Random(0)
    words = sorted({word for word in (__doc__ or "").split() if word.isalpha()})
    made = []
    for _ in range(ANSWERS):
        steps = [" ".join(chosen.choices(words, k=12)) + "." for _ in range(SENTENCES)]
        verdict, score = chosen.choice(["right", "wrong"]), chosen.randint(0, 100)
        text = json.dumps({"steps": steps, "verdict": verdict, "score": score})
        made.append([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    return made


def in_a_batch(grammar: Grammar, said: list[list[int]], logits: torch.Tensor) -> None:
    """The masks of all answers as far as the shortest goes, without those of logits that would be forbidden."""
    rows = torch.arange(len(said))
    held, done = Constraints([grammar.start([]) for _ in said], grammar), torch.zeros(len(said), dtype=torch.bool)
    for tokens in torch.tensor([answer[: min(map(len, said))] for answer in said]).T:
        held.mask(logits, rows, done)
        held.advance(rows, tokens)


def processor_seconds(way: Callable[[], object], rounds: int) -> float:
    """The best of several rounds, of all processors together."""
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        way()
        best = min(best, time.process_time() - start)
    return best


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    tokenizer = make_tokenizer()
    grammar = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id]).of(SCHEMA)
    said = answers(tokenizer)
    tokens, shortest = sum(map(len, said)), min(map(len, said)) * len(said)
    logits = torch.zeros(len(said), len(tokenizer))
    ways = {
        "masks, one by one": (tokens, lambda: [grammar.masks([], answer) for answer in said]),
        f"masks, {len(said)} rows at a time, and logits without what they forbid": (
            shortest,
            lambda: in_a_batch(grammar, said, logits),
        ),
    }
    rows = [
        [name, f"{1e6 * processor_seconds(way, options.rounds) / count:.0f}"] for name, (count, way) in ways.items()
    ]
    words = (
        f"`python -m benchmarks.grammar`: {ANSWERS} answers of {tokens // ANSWERS} tokens on average, a vocabulary of "
        f"{len(tokenizer):,}, best of {options.rounds}. {report.machine(('torch', 'llguidance'))}."
    )
    table = report.table(["", "µs of a processor for each token"], rows)
    report.write_section("grammar", "Answers held to a schema", f"{words}\n\n{table}")


if __name__ == "__main__":
    main()
