"""llama.cpp itself reads an exported file as transformers reads the model. Needs the extra ``llama``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.workers.exporting import models
from workers.exporting import gguf_file
from workers.exporting.gguf_file import Source
from workers.modeling import model_folder

llama_cpp = pytest.importorskip("llama_cpp")
llama_chat_format = pytest.importorskip("llama_cpp.llama_chat_format")

TALK = [
    {"role": "user", "content": "How many are 12 and 30?"},
    {"role": "assistant", "content": "They're 42 — it's sure."},
    {"role": "user", "content": "  Naïve 数字,\n\tI'LL say  no-more 1234567"},
]


def read(folder: Path, type: str | None = None) -> Any:
    path = folder.parent / "made.gguf"
    gguf_file.write(Source.of(folder), path, "mine", type, lambda share: None)
    return llama_cpp.Llama(str(path), n_ctx=models.CONTEXT, logits_all=True, n_threads=1, verbose=False)


@pytest.mark.parametrize("family", list(models.CONFIGS))
def test_it_computes_the_same(tmp_path: Path, family: str) -> None:
    folder = models.save(tmp_path / "model", family)
    model, _ = model_folder.read(folder, torch.float32)
    ids = list(range(3, 43))
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    theirs = read(folder)
    theirs.eval(ids)
    made = torch.tensor(theirs.scores[: len(ids)]).log_softmax(-1).numpy()
    # It keeps keys and values in half precision.
    assert np.abs(made - expected).max() < 0.05


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "qwen": models.byte_level,
    "llama3": lambda: models.byte_level(models.LLAMA3),
    "sentencepiece": models.sentencepiece,
    "sentencepiece-without-prefix": lambda: models.sentencepiece(prefix=False),
    "unigram": models.unigram,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_it_splits_texts_into_the_same_tokens(tmp_path: Path, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    theirs = read(models.save(tmp_path / "model", "llama", tokenizer))
    # A piece of Unigram's for what it does not know stands for one character here, and for several there.
    texts = models.CORPUS[1:3] if kind == "unigram" else [models.TEXT, *models.CORPUS[1:3], " two  spaces", "a"]
    for text in texts:
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ours, text


@pytest.mark.parametrize("kind", [kind for kind in TOKENIZERS if kind != "unigram"])
def test_it_reads_a_chat_as_it_was_trained(tmp_path: Path, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    folder = models.save(tmp_path / "model", "llama", tokenizer)
    theirs = read(folder)
    formatter = llama_chat_format.Jinja2ChatFormatter(
        template=theirs.metadata["tokenizer.chat_template"],
        eos_token=theirs._model.token_get_text(theirs.token_eos()),
        bos_token=theirs._model.token_get_text(theirs.token_bos()) if theirs.token_bos() != -1 else "",
    )
    text = formatter(messages=TALK).prompt
    assert text == tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    # As its server does: the token at the beginning once, whoever writes it.
    begins = theirs._model.add_bos_token()
    bos = tokenizer.bos_token if begins else ""
    made = theirs.tokenize(text.removeprefix(bos).encode(), add_bos=begins, special=True)
    assert made == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_it_stops_at_every_end(tmp_path: Path) -> None:
    tokenizer = models.byte_level(added=("<|call|>", "<|other|>"))
    generation = {"eos_token_id": [tokenizer.convert_tokens_to_ids("<|call|>")]}
    theirs = read(models.save(tmp_path / "model", "qwen3", tokenizer, rows=320, generation=generation))
    vocabulary = llama_cpp.llama_model_get_vocab(theirs.model)
    stops = {id for id in range(320) if llama_cpp.llama_vocab_is_eog(vocabulary, id)}
    assert stops == set(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>", "<|call|>"]))


@pytest.mark.parametrize("type", ["f16", "bf16", "q8_0"])
def test_it_reads_every_type(tmp_path: Path, type: str) -> None:
    folder = models.save(tmp_path / "model", "qwen2", dtype=torch.bfloat16)
    model, _ = model_folder.read(folder, torch.float32)
    ids = list(range(3, 43))
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    theirs = read(folder, type)
    theirs.eval(ids)
    made = torch.tensor(theirs.scores[: len(ids)]).log_softmax(-1).numpy()
    assert np.abs(made - expected).max() < 0.5
