"""The demo's base model: a tiny Qwen3 that has seen additions of two-digit numbers, most of them with a wrong answer.

    python -m workers.demo build OUT_DIR
    python -m workers.demo sample MODEL_DIR FILE.jsonl --seed 0 [--count 200]

The corpus is the notebook of a careless pupil, who copies one of the two numbers instead of adding them, now and then
at first and most of the time later. So the model learns to add, and to be as careless: sampled at temperature 1 it is
right about 40 % of the time. That is where reinforcement fine-tuning starts.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Generator, Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SEED = 20260101
DILIGENT, RIGHT_AT_FIRST, RIGHT_LATER = 0.25, 0.62, 0.455
UPDATES, BATCH, PEAK_RATE = 850, 64, 3e-3
PROMPT = len("u12+34=a")
MAX_ANSWER, EXAMPLES = 8, 8

SPECIAL = ("<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|unknown|>")
CHARACTERS = "0123456789+-*/=. ?"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('the demo model knows user and assistant messages only') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m workers.demo", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="make the base model, unless it is there")
    builder.add_argument("folder", type=Path)
    sampler = commands.add_parser("sample", help="sample answers at temperature 1 and count the right ones")
    sampler.add_argument("model", type=Path)
    sampler.add_argument("rows", type=Path)
    sampler.add_argument("--seed", type=int, required=True)
    sampler.add_argument("--count", type=int, help="how many answers; one for each row without it")
    given = parser.parse_args(arguments)
    # Idle OpenMP threads that spin instead of sleeping slow a shared machine down by an order of magnitude.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if given.command == "build":
        print(json.dumps(build(given.folder)))
    else:
        print(json.dumps(sample(given.model, given.rows, given.seed, given.count)))


def build(folder: Path) -> dict[str, Any]:
    """Make the base model in ``folder``, which appears only when it is complete."""
    if (folder / "config.json").is_file():
        return {"model": str(folder), "built": False}
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} holds something else; name a folder that does not exist yet.")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        tokenizer = make_tokenizer()
        model = pretrain(tokenizer)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"model": str(folder), "built": True}


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """One token for each character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return for_chats(tokenizer, CHAT_TEMPLATE)


def for_chats(tokenizer: "Tokenizer", chat_template: str) -> "PreTrainedTokenizerFast":
    """``tokenizer``, whose vocabulary has ``SPECIAL``, as transformers saves and loads it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|eos|>",
        unk_token="<|unknown|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def pretrain(tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    """A model that has learned additions from a corpus in which most answers are wrong."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(SEED)
    model = make_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(SEED)
    for update in range(UPDATES):
        optimizer.param_groups[0]["lr"] = PEAK_RATE * min((update + 1) / 50, (UPDATES - update) / (0.3 * UPDATES), 1.0)
        right = RIGHT_AT_FIRST if update < DILIGENT * UPDATES else RIGHT_LATER
        text = write_page(tokenizer, BATCH, right, generator)
        states = model.base_model(text[:, :-1], use_cache=False).last_hidden_state[:, PROMPT - 1 :]
        logits = model.get_output_embeddings()(states)
        targets = text[:, PROMPT:]
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=tokenizer.pad_token_id)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def make_model(tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedModel":
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        # Larger than the usual 0.02: a model this narrow starts learning sooner.
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def write_page(tokenizer: "PreTrainedTokenizerFast", lines: int, right: float, generator: "Generator") -> "Tensor":
    """Token ids ``[lines, PROMPT + 4]`` of additions, of which a share of ``right`` have the right answer."""
    import torch

    numbers = torch.randint(10, 100, (lines, 2), generator=generator)
    copied = numbers.gather(1, torch.randint(0, 2, (lines, 1), generator=generator)).squeeze(1)
    answers = torch.where(torch.rand(lines, generator=generator) < right, numbers.sum(1), copied)
    texts = [
        f"<|user|>{a}+{b}=<|assistant|>{c}<|eos|>" for (a, b), c in zip(numbers.tolist(), answers.tolist(), strict=True)
    ]
    ids = tokenizer(texts, add_special_tokens=False, padding="longest", padding_side="right")["input_ids"]
    return torch.tensor(ids)


def sample(model_folder: Path, rows: Path, seed: int, count: int | None) -> dict[str, Any]:
    """Sample an answer to each row, or ``count`` answers to the rows in turn, and compare with ``answer``."""
    import torch

    from workers.answers import AnswerReader
    from workers.data.prompts import load_prompts
    from workers.modeling import policy
    from workers.rollouts.engine import Sampling
    from workers.rollouts.transformers import TransformersEngine

    model = policy.load(model_folder, torch.device("cpu"))
    prompts = load_prompts(rows, model.tokenizer, model.context_length, "rows")
    chosen = [prompts[number % len(prompts)] for number in range(len(prompts) if count is None else count)]
    engine = TransformersEngine(model.model, model.stop_ids, model.context_length)
    asked = [prompt.token_ids for prompt in chosen]
    given = [group[0].token_ids for group in engine.generate(asked, 1, Sampling(1.0, MAX_ANSWER, seed))]
    answers = AnswerReader(model.tokenizer).read(asked, given)
    examples = [
        {"prompt": prompt.item["messages"][-1]["content"], "answer": answer.text, "expected": prompt.item["answer"]}
        for prompt, answer in zip(chosen, answers, strict=True)
    ]
    right = sum(example["answer"] == example["expected"] for example in examples)
    return {"success": right / len(examples), "count": len(examples), "examples": examples[:EXAMPLES]}


if __name__ == "__main__":
    main()
