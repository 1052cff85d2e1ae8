"""What a made task is: problems without end, a grader, and a base model that is trained here in minutes.

A problem's question goes into the row of a job, with the fields that the grader reads. Its answer is that of a careless
pupil, and is what the base model learns from: right with a given probability, and otherwise wrong in the way that is
always the same. So a base model is right now and then when sampled and hardly ever when greedy, and reinforcement has
something to find.
"""

import hashlib
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workers.demo import SPECIAL, for_chats

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Part = Literal["train", "valid", "held-out"]
PARTS: tuple[Part, ...] = ("train", "valid", "held-out")
SHARES = 10
"""A tenth of all questions is kept for validation, and a tenth is held out."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TRIES = 20_000
"""How many problems in a row may be none that is wanted before there are taken to be no more."""


@dataclass(frozen=True)
class Problem:
    question: str
    answer: str
    """The pupil's."""
    expected: str
    """The field ``answer`` of the row, which the grader reads."""


@dataclass(frozen=True)
class Recipe:
    """How a base model is trained. The corpus is right with ``right_at_first``, later with ``right_later``."""

    right_at_first: float
    right_later: float
    diligent: float = 0.35
    """Share of the updates before the pupil becomes careless."""
    updates: int = 900
    batch: int = 64
    peak_rate: float = 3e-3
    width: int = 128
    layers: int = 2
    heads: int = 4
    context: int = 256
    seed: int = 20260101


@dataclass(frozen=True)
class Task:
    name: str
    about: str
    write: Callable[[random.Random, float], Problem]
    """A problem, whose answer is right (at every step, where it has steps) with the given probability."""
    tokenizer: Callable[[], "PreTrainedTokenizerFast"]
    grader: dict[str, Any]
    max_completion_tokens: int
    recipe: Recipe

    def rows(self, part: Part, count: int, seed: int) -> list[dict[str, Any]]:
        """``count`` different rows. Whatever the seeds, no question is in two parts. Raises ``ValueError``."""
        dice, tries = random.Random(f"{self.name} {part} {seed}"), 0
        rows: dict[str, Any] = {}
        while len(rows) < count:
            problem, tries = self.write(dice, 1.0), tries + 1
            if part_of(problem.question) == part and problem.question not in rows:
                message = {"role": "user", "content": problem.question}
                rows[problem.question], tries = {"messages": [message], "answer": problem.expected}, 0
            elif tries == TRIES:
                raise ValueError(f"The task {self.name} has only {len(rows)} questions for '{part}'. Ask for fewer.")
        return list(rows.values())

    def write_rows(self, path: Path, part: Part, count: int, seed: int) -> None:
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows(part, count, seed)))

    def base(self, cache: Path) -> Path:
        """The folder of the base model below ``cache``, where it is trained unless it is there."""
        folder = cache / f"{self.name}-{self.fingerprint}"
        if (folder / "config.json").is_file():
            return folder
        partial = cache / f".{folder.name}.{os.getpid()}.partial"
        partial.mkdir(parents=True)
        try:
            tokenizer = self.tokenizer()
            pretrain(self, tokenizer).save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    @property
    def fingerprint(self) -> str:
        """Eight characters that change with the recipe, the corpus and the tokenizer."""
        dice = random.Random(0)
        corpus = [asdict(self.write(dice, 0.5)) for _ in range(50)]
        vocabulary = sorted(self.tokenizer().get_vocab().items())
        told = json.dumps([asdict(self.recipe), corpus, vocabulary])
        return hashlib.sha256(told.encode()).hexdigest()[:8]


def exact() -> dict[str, Any]:
    """A grader that wants the row's ``answer`` and nothing else."""
    return {
        "type": "string_check",
        "name": "exact",
        "operation": "eq",
        "input": "{{sample.output_text}}",
        "reference": "{{item.answer}}",
    }


def ends_with(phrase: str) -> dict[str, Any]:
    """A grader that wants ``phrase``, the row's ``answer`` and a full stop in the answer."""
    return exact() | {"name": "result", "operation": "like", "reference": phrase + " {{item.answer}} ."}


def part_of(question: str) -> Part:
    number = hashlib.sha256(question.encode()).digest()[0] % SHARES
    return "valid" if number == 0 else "held-out" if number == 1 else "train"


def word_tokenizer(words: list[str]) -> "PreTrainedTokenizerFast":
    """One token for each word between spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return for_chats(tokenizer, CHAT_TEMPLATE)


def pretrain(task: Task, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    """A model of the pupil's answers; the same weights, bit for bit, for the same recipe and build of torch."""
    import torch
    from torch.nn.functional import cross_entropy

    recipe, threads = task.recipe, torch.get_num_threads()
    # Sums of several threads depend on how many there are.
    torch.set_num_threads(1)
    try:
        torch.manual_seed(recipe.seed)
        model = make_model(recipe, tokenizer)
        optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        for update, (ids, learned) in enumerate(pages(task, tokenizer)):
            left = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * update / recipe.updates))
            optimizer.param_groups[0]["lr"] = recipe.peak_rate * min((update + 1) / 50, left)
            states = model.base_model(ids[:, :-1], use_cache=False).last_hidden_state[learned[:, 1:]]
            loss = cross_entropy(model.get_output_embeddings()(states), ids[:, 1:][learned[:, 1:]])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    finally:
        torch.set_num_threads(threads)
    return model.eval()


def pages(task: Task, tokenizer: "PreTrainedTokenizerFast") -> Iterator[tuple["Tensor", "Tensor"]]:
    """For each update token ids ``[batch, T]``, padded on the right, and which of them are of answers."""
    import torch

    recipe = task.recipe
    dice = random.Random(f"corpus {recipe.seed}")
    for update in range(recipe.updates):
        right = recipe.right_at_first if update < recipe.diligent * recipe.updates else recipe.right_later
        problems = [task.write(dice, right) for _ in range(recipe.batch)]
        asked = tokenizer([f"<|user|>{p.question}<|assistant|>" for p in problems], add_special_tokens=False)
        answered = tokenizer([f"{p.answer}<|eos|>" for p in problems], add_special_tokens=False)
        pairs = list(zip(asked["input_ids"], answered["input_ids"], strict=True))
        ids = torch.full((len(pairs), max(len(a) + len(b) for a, b in pairs)), tokenizer.pad_token_id)
        learned = torch.zeros(ids.shape, dtype=torch.bool)
        for row, (question, answer) in enumerate(pairs):
            ids[row, : len(question) + len(answer)] = torch.tensor(question + answer)
            learned[row, len(question) : len(question) + len(answer)] = True
        yield ids, learned


def make_model(recipe: Recipe, tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=recipe.width,
            intermediate_size=2 * recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            head_dim=recipe.width // recipe.heads,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            # Larger than the usual 0.02: a model this narrow starts learning sooner.
            initializer_range=0.08,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
