"""What a host finds in a model's folder."""

import json
from pathlib import Path

from tests.workers.serving import tiny
from workers.serving.host import loading
from workers.serving.lines import Options


def test_every_end_of_an_answer_stops_a_chat(tmp_path: Path) -> None:
    """Of tokenizer, configuration and chat template, where they differ and there is no generation config."""
    folder = tiny.save(tmp_path / "model")
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [7]}))
    engine, _ = loading.load(Options(model_path=str(folder), engine="transformers", memory_share=1.0))
    ids = tokenizer.get_vocab()
    assert set(engine.stop_ids) == {7, ids["<|endoftext|>"], ids["<|im_end|>"]}
