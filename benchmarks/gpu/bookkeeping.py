"""A task for comparing objectives on text as a language model writes it, and a base model that half masters it.

    python -m benchmarks.gpu.bookkeeping FOLDER --seconds 110            # on a GPU
    python -m benchmarks.gpu.bookkeeping FOLDER --seconds 120 --size tiny --names 300 --things 200 --digits 1 --events 2

A problem tells who has how many of what and who brings or takes some; the answer keeps the book in words, one sentence
for each event, and ends with the result, which alone is graded. Of an answer's 50 to 90 tokens nearly all are certain:
phrases, and names and numbers that are copied from the problem. Some choose between phrases that mean the same, and a
few decide: the digits of every new balance.

The corpus is that of a careless bookkeeper: every balance is right with probability ``right``, and a wrong one is
carried on. A model that has learned it answers a problem of three events rightly about ``right ** 3`` of the time
when sampled, and nearly always when greedy: what it finds most likely is right, and training has to make it surer.
Nothing is downloaded. FOLDER becomes a Hugging Face model folder.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL = ("<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|unknown|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
OPENINGS = ("at first", "to begin with", "we know that")
LINKS = ("then", "next", "after that")
RESULTS = ("which makes", "so there are", "that gives")
PHRASE_WEIGHTS = (6, 3, 1)
WORDS = "has brings takes more away . , ? how many are left now plus minus and so the answer is"
SYLLABLES = [first + second for first, second in product("bdfgklmnprstvz", "aeiou")]

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4},
    "small": {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 6, "num_attention_heads": 12},
    "large": {"hidden_size": 896, "intermediate_size": 2688, "num_hidden_layers": 8, "num_attention_heads": 14},
}
"""About 1.5, 49 and 84 million parameters with 8,250 words."""
RATES = {"tiny": 3e-3, "small": 8e-4, "large": 6e-4}
BATCHES = {"tiny": 32, "small": 256, "large": 256}


@dataclass(frozen=True)
class Task:
    """How large the vocabulary and the problems are."""

    names: int = 5000
    things: int = 3200
    digits: int = 2
    """Digits of the numbers in a problem; a balance may have one more."""
    events: int = 3
    right: float = 0.62
    """How often a balance of the corpus is right."""

    def words(self) -> list[str]:
        """Names and things: made words of three syllables, in no particular order."""
        every = ["".join(parts) for parts in product(SYLLABLES, repeat=3)]
        return random.Random(0).sample(every, self.names + self.things)

    @property
    def max_completion_tokens(self) -> int:
        """Of the longest answer, and some room."""
        return 24 + self.events * (12 + 3 * (self.digits + 1))


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str
    """The bookkeeping of one who makes mistakes."""
    result: str
    """What is right."""


class Writer:
    """Writes problems of a task."""

    def __init__(self, task: Task) -> None:
        words = task.words()
        self.task, self.names, self.things = task, words[: task.names], words[task.names :]

    def write(self, dice: random.Random) -> Problem:
        task = self.task
        owner, thing = _common(dice, self.names), _common(dice, self.things)
        low = 10 ** (task.digits - 1)
        number = dice.randrange(low, 10**task.digits)
        told = [f"{owner} has {spell(number)} {thing} ."]
        book = [f"{_phrase(dice, OPENINGS)} {owner} has {spell(number)} {thing} ."]
        true = kept = number
        for _ in range(task.events):
            name = _common(dice, self.names)
            # What is taken is there, whether the book is right or not.
            least = min(true, kept)
            takes = least >= low and (dice.random() < 0.5 or max(true, kept) >= 9 * 10**task.digits)
            change = (
                dice.randrange(low, min(least + 1, 10**task.digits)) if takes else dice.randrange(low, 10**task.digits)
            )
            told.append(f"{name} takes {spell(change)} away ." if takes else f"{name} brings {spell(change)} more .")
            true += -change if takes else change
            before, kept = kept, kept - change if takes else kept + change
            if dice.random() >= task.right:
                kept = _wrong(dice, before, change, kept, 10 ** (task.digits + 1))
            book.append(
                f"{_phrase(dice, LINKS)} {name} {'takes' if takes else 'brings'} {spell(change)} , "
                f"{spell(before)} {'minus' if takes else 'plus'} {spell(change)} , {_phrase(dice, RESULTS)} {spell(kept)} ."
            )
        question = f"{' '.join(told)} how many {thing} are left now ?"
        return Problem(question, f"{' '.join(book)} so the answer is {spell(kept)} .", spell(true))


def spell(number: int) -> str:
    """Digit by digit."""
    return " ".join(str(number))


def is_right(answer: str, result: str) -> bool:
    """Whether a whole answer ends with the right result and names no other."""
    return answer.rstrip().endswith(f"the answer is {result} .") and answer.count("answer is") == 1


def grader() -> dict[str, Any]:
    return {
        "type": "string_check",
        "name": "result",
        "input": "{{sample.output_text}}",
        "reference": "so the answer is {{item.result}} .",
        "operation": "like",
    }


def _common(dice: random.Random, words: list[str]) -> str:
    """A word; the first ones are the most common."""
    return words[int(len(words) * dice.random() ** 2)]


def _phrase(dice: random.Random, phrases: tuple[str, ...]) -> str:
    return dice.choices(phrases, PHRASE_WEIGHTS)[0]


def _wrong(dice: random.Random, before: int, change: int, right: int, limit: int) -> int:
    """A careless balance: a number copied, a carry forgotten, a slip of one or two."""
    slips = [before, change, *(right + slip for slip in (-10, 10, -1, 1, -2, 2))]
    return dice.choice([number for number in slips if 0 <= number < limit and number != right])


def make_tokenizer(task: Task) -> "PreTrainedTokenizerFast":
    """One token for each word and digit."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fixed = " ".join([WORDS, *OPENINGS, *LINKS, *RESULTS, "0 1 2 3 4 5 6 7 8 9"]).split()
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *fixed, *task.words()]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|eos|>",
        unk_token="<|unknown|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def write_rows(path: Path, task: Task, count: int, seed: int) -> None:
    """A file of ``count`` rows as a job takes them."""
    writer, dice = Writer(task), random.Random(f"rows {seed}")
    problems = [writer.write(dice) for _ in range(count)]
    rows = [{"messages": [{"role": "user", "content": p.question}], "result": p.result} for p in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


_writer: Writer
_vocabulary: dict[str, int]


def _prepare(task: Task, vocabulary: dict[str, int]) -> None:
    global _writer, _vocabulary
    _writer, _vocabulary = Writer(task), vocabulary


def _page(asked: tuple[int, int]) -> tuple[list[list[int]], list[int]]:
    """Token ids of ``count`` texts, and where their answers begin."""
    seed, count = asked
    dice, texts, starts = random.Random(f"page {seed}"), [], []
    for _ in range(count):
        problem = _writer.write(dice)
        prompt = ["<|user|>", *problem.question.split(), "<|assistant|>"]
        texts.append([_vocabulary[word] for word in [*prompt, *problem.answer.split(), "<|eos|>"]])
        starts.append(len(prompt))
    return texts, starts


def pages(task: Task, tokenizer: "PreTrainedTokenizerFast", batch: int, processes: int) -> Iterator[Any]:
    """Endless batches, written by processes of their own."""
    with multiprocessing.get_context("spawn").Pool(processes, _prepare, (task, tokenizer.get_vocab())) as pool:
        waiting: list[Any] = []
        number = 0
        while True:
            while len(waiting) < 4 * processes:
                waiting.append(pool.apply_async(_page, ((number, batch),)))
                number += 1
            yield waiting.pop(0).get()


def make_model(size: str, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = SIZES[size]
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        **shape,
        num_key_value_heads=shape["num_attention_heads"] // 2,
        head_dim=shape["hidden_size"] // shape["num_attention_heads"],
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.08 if size == "tiny" else 0.02,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def build(folder: Path, task: Task, size: str, seconds: float, processes: int = 6) -> dict[str, Any]:
    """Train a model on the careless bookkeeper's answers for ``seconds``, and save it in ``folder``."""
    import torch
    from torch.nn.functional import cross_entropy

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    tokenizer = make_tokenizer(task)
    model = make_model(size, tokenizer).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    updates, read, losses, started = 0, 0, [], 0.0
    for texts, starts in pages(task, tokenizer, BATCHES[size], processes):
        # The clock starts when the first page is there.
        started = started or time.monotonic()
        spent = (time.monotonic() - started) / seconds
        if spent >= 1:
            break
        rate = RATES[size] * min((updates + 1) / 100, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent)))
        width = max(map(len, texts))
        ids = torch.full((len(texts), width), tokenizer.pad_token_id)
        learned = torch.zeros(len(texts), width, dtype=torch.bool)
        for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
            ids[row, : len(text)] = torch.tensor(text)
            learned[row, start : len(text)] = True
        positions = (learned[:, 1:].flatten()).nonzero().squeeze(1).to(device)
        ids = ids.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            states = model.base_model(ids[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)[positions]
            logits = model.get_output_embeddings()(states)
        loss = cross_entropy(logits.float(), ids[:, 1:].flatten()[positions])
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        updates, read = updates + 1, read + sum(map(len, texts))
        if updates % 50 == 0:
            losses.append([updates, round(loss.item(), 4)])
            print(f"update {updates}, {spent:.0%} of the time, loss {losses[-1][1]}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": len(tokenizer),
        "updates": updates,
        "tokens_read": read,
        "losses": losses[:: max(1, len(losses) // 20)],
    }


def evaluate(folder: Path, rows: Path, max_tokens: int, temperature: float, seed: int) -> dict[str, Any]:
    """Answers of the model in ``folder`` to every row: "1" or "0" for each, their mean, lengths and an example."""
    import torch

    from workers.answers import AnswerReader
    from workers.data.prompts import load_prompts
    from workers.modeling import policy
    from workers.rollouts.engine import Sampling
    from workers.rollouts.transformers import TransformersEngine

    loaded = policy.load(folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    prompts = load_prompts(rows, loaded.tokenizer, loaded.context_length, "rows")
    engine = TransformersEngine(loaded.model, loaded.stop_ids, loaded.context_length)
    asked = [prompt.token_ids for prompt in prompts]
    given = [group[0] for group in engine.generate(asked, 1, Sampling(temperature, max_tokens, seed))]
    answers = AnswerReader(loaded.tokenizer).read(asked, [rollout.token_ids for rollout in given])
    right = [is_right(a.text, str(p.item["result"])) for a, p in zip(answers, prompts, strict=True)]
    sure = [log_prob > math.log(0.95) for rollout in given for log_prob in rollout.log_probs]
    return {
        "success": sum(right) / len(right),
        "right": "".join("1" if each else "0" for each in right),
        "tokens_mean": sum(len(rollout.token_ids) for rollout in given) / len(given),
        "near_certain_tokens": sum(sure) / len(sure),
        "cut_off": sum(rollout.finish_reason == "length" for rollout in given) / len(given),
        "example": answers[0].text,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for a ``Task`` and a size."""
    parser.add_argument("--size", choices=SIZES, default="small")
    for name, value in asdict(Task()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)


def task_of(given: argparse.Namespace) -> Task:
    return Task(given.names, given.things, given.digits, given.events, given.right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, required=True, help="of training; the rate falls over this time")
    parser.add_argument("--processes", type=int, default=6, help="that write text")
    add_arguments(parser)
    given = parser.parse_args()
    print(json.dumps(build(given.folder, task_of(given), given.size, given.seconds, given.processes)))


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
