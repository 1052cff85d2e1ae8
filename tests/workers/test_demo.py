"""The demo's base model and corpus."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from workers import demo


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates are enough for a model folder."""
    monkeypatch.setattr(demo, "UPDATES", 2)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"messages": [{"role": "user", "content": f"1{n}+20="}], "answer": str(30 + n)} for n in range(5)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def corpus(right: float, lines: int = 4000) -> list[tuple[int, int, int]]:
    """Both numbers and the answer of each line."""
    tokenizer = demo.make_tokenizer()
    page = demo.write_page(tokenizer, lines, right, torch.Generator().manual_seed(1))
    texts = tokenizer.batch_decode(page, skip_special_tokens=True)
    questions = [text.split("=") for text in texts]
    return [(*map(int, question.split("+")), int(answer)) for question, answer in questions]  # type: ignore[misc]


def test_most_answers_of_the_corpus_are_wrong() -> None:
    share = demo.DILIGENT * demo.RIGHT_AT_FIRST + (1 - demo.DILIGENT) * demo.RIGHT_LATER
    assert share < 0.5
    lines = corpus(share)
    assert sum(a + b == c for a, b, c in lines) / len(lines) == pytest.approx(share, abs=0.03)


def test_wrong_answers_repeat_one_of_the_numbers() -> None:
    assert all(answer in (a, b) for a, b, answer in corpus(0.0, lines=500))


def test_the_corpus_is_made_of_additions_of_two_digit_numbers() -> None:
    seen = corpus(0.5)
    assert {min(min(a, b) for a, b, _ in seen), max(max(a, b) for a, b, _ in seen)} <= {10, 11, 98, 99}


def test_a_prompt_is_what_the_corpus_shows_the_model() -> None:
    tokenizer = demo.make_tokenizer()
    page = demo.write_page(tokenizer, 3, 1.0, torch.Generator().manual_seed(1))
    for line in page:
        text = tokenizer.decode(line, skip_special_tokens=True)
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": text.split("=")[0] + "="}], add_generation_prompt=True, tokenize=False
        )
        assert tokenizer(asked)["input_ids"] == line[: demo.PROMPT].tolist()


def test_other_roles_are_refused_by_name() -> None:
    with pytest.raises(Exception, match="user and assistant messages only"):
        demo.make_tokenizer().apply_chat_template([{"role": "system", "content": "1"}])


def test_text_survives_the_tokenizer() -> None:
    tokenizer = demo.make_tokenizer()
    text = "12 + 34 = 46?"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.usefixtures("quick")
def test_the_base_model_is_a_folder_that_transformers_loads(tmp_path: Path) -> None:
    assert demo.build(tmp_path / "models" / "base")["built"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "base").config.model_type == "qwen3"
    assert AutoTokenizer.from_pretrained(tmp_path / "models" / "base").eos_token == "<|eos|>"
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["base"]


@pytest.mark.usefixtures("quick")
def test_building_twice_gives_the_same_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        demo.build(tmp_path / name)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.usefixtures("quick")
def test_a_complete_model_is_left_alone(tmp_path: Path) -> None:
    demo.build(tmp_path / "base")
    before = (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns
    assert demo.build(tmp_path / "base") == {"model": str(tmp_path / "base"), "built": False}
    assert (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns == before


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="something else"):
        demo.build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "pretrain", fail)
    with pytest.raises(KeyboardInterrupt):
        demo.build(tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_sampling_reports_what_it_counted(tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.build(tmp_path / "base")
    demo.main(["sample", str(tmp_path / "base"), str(rows), "--seed", "3", "--count", "12"])
    report = json.loads(capsys.readouterr().out)
    assert (report["count"], len(report["examples"])) == (12, demo.EXAMPLES)
    assert report["examples"][0].keys() == {"prompt", "answer", "expected"}
    assert [example["expected"] for example in report["examples"][:6]] == ["30", "31", "32", "33", "34", "30"]
    assert report == demo.sample(tmp_path / "base", rows, 3, 12)
    assert report["examples"] != demo.sample(tmp_path / "base", rows, 4, 12)["examples"]


@pytest.mark.usefixtures("quick")
def test_success_is_the_share_of_right_answers(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo.build(tmp_path / "base")
    monkeypatch.setattr(demo, "EXAMPLES", 1000)
    # A model that has learned nothing ends its answer at once now and then, and is right if nothing was expected.
    easy = [json.loads(line) | {"answer": ""} for line in rows.read_text().splitlines()]
    rows.write_text("\n".join(map(json.dumps, easy)))
    report = demo.sample(tmp_path / "base", rows, 1, 1000)
    right = sum(example["answer"] == "" for example in report["examples"])
    assert report["success"] == right / 1000 > 0
