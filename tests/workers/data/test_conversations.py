"""Which tokens of a conversation are learned, under chat templates of every habit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from workers.data import conversations
from workers.data.conversations import Example
from workers.data.prompts import load_prompts
from workers.demo import make_tokenizer
from workers.errors import RunError
from workers.training import supervised

USER, FIRST, LAST = "12+34=", "46", "80"
TALK = [("user", USER), ("assistant", FIRST), ("user", "46+34="), ("assistant", LAST)]
BODY = "{{ '<|' + m.role + '|>' + m.content }}{% if m.role == 'assistant' %}<|eos|>{% endif %}"
ASK = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
PLAIN = "{% for m in messages %}" + BODY + " {% endfor %}" + ASK
# Reasons ("?") before the last answer only, as templates do that drop the reasoning of earlier turns.
REASONING = (
    "{% for m in messages %}{% if loop.last and m.role == 'assistant' %}<|assistant|>?{{ m.content }}<|eos|>"
    "{% else %}" + BODY + "{% endif %}{% endfor %}" + ASK
)
# Opens the reasoning for the model, and does not write it before an answer.
OPENING = "{% for m in messages %}" + BODY + "{% endfor %}{% if add_generation_prompt %}<|assistant|>?{% endif %}"
ENDLESS = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}" + ASK
CALLS = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% for c in m.tool_calls or [] %}{{ c.function.arguments.a + 1 }}"
    "{% endfor %}{{ m.content or '' }}{% if m.role == 'assistant' %}<|eos|>{% endif %}{% endfor %}" + ASK
)


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def message(role: str, content: str | None, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def load(folder: Path, tokenizer: PreTrainedTokenizerBase, *rows: Any, context_length: int = 64) -> list[list[Example]]:
    path = folder / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps({"messages": row}) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return [*conversations.load(path, tokenizer, [tokenizer.eos_token_id], context_length, "training_file")]


def shown(tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[str, list[str]]:
    """The whole text, and the learned stretches of it."""
    stretches: list[list[int]] = []
    for place in example.learned:
        if stretches and place == stretches[-1][-1] + 1:
            stretches[-1].append(place)
        else:
            stretches.append([place])
    texts = [tokenizer.decode([example.token_ids[place] for place in stretch]) for stretch in stretches]
    return tokenizer.decode(example.token_ids), texts


def test_a_conversation_is_one_example_that_learns_each_answer_and_its_end(tmp_path: Path) -> None:
    tokenizer = with_template(PLAIN)
    ((example,),) = load(tmp_path, tokenizer, [message(*each) for each in TALK])
    text, learned = shown(tokenizer, example)
    assert learned == ["46<|eos|>", "80<|eos|>"]
    # The space that the template writes behind an answer is read, and not learned.
    assert text == "<|user|>12+34= <|assistant|>46<|eos|> <|user|>46+34= <|assistant|>80<|eos|>"


def test_what_a_template_writes_behind_the_end_of_an_answer_is_not_learned(tmp_path: Path) -> None:
    # As templates do that close a conversation with a second token that ends answers.
    tokenizer = with_template(PLAIN + "{% if not add_generation_prompt %}<|eos|>{% endif %}")
    ((example,),) = load(tmp_path, tokenizer, [message("user", USER), message("assistant", FIRST)])
    assert shown(tokenizer, example)[1] == ["46<|eos|>"]


def test_an_answer_of_weight_0_is_read_and_not_learned(tmp_path: Path) -> None:
    tokenizer = with_template(PLAIN)
    talk = [message(*each) for each in TALK]
    rows = load(
        tmp_path, tokenizer, [talk[0], talk[1] | {"weight": 0}, *talk[2:]], [*talk[:3], talk[3] | {"weight": 0}]
    )
    assert [shown(tokenizer, row[0])[1] for row in rows] == [["80<|eos|>"], ["46<|eos|>"]]
    assert shown(tokenizer, rows[0][0])[0].startswith("<|user|>12+34= <|assistant|>46<|eos|>")


def test_a_template_that_changes_earlier_turns_makes_an_example_of_each_answer(tmp_path: Path) -> None:
    tokenizer = with_template(REASONING)
    (examples,) = load(tmp_path, tokenizer, [message(*each) for each in TALK])
    assert [shown(tokenizer, example) for example in examples] == [
        ("<|user|>12+34=<|assistant|>?46<|eos|>", ["?46<|eos|>"]),
        ("<|user|>12+34=<|assistant|>46<|eos|><|user|>46+34=<|assistant|>?80<|eos|>", ["?80<|eos|>"]),
    ]


def test_what_is_learned_follows_on_the_prompt_that_reinforcement_samples_from(tmp_path: Path) -> None:
    for template in (PLAIN, REASONING, ENDLESS, None):
        tokenizer = with_template(template)
        talk = [message(*each) for each in TALK]
        example = load(tmp_path, tokenizer, talk)[0][-1]
        path = tmp_path / "asked.jsonl"
        path.write_text(json.dumps({"messages": talk[:3]}))
        (prompt,) = load_prompts(path, tokenizer, 64, "training_file")
        start = len(prompt.token_ids)
        assert example.token_ids[:start] == prompt.token_ids
        assert [place for place in example.learned if place >= start - 1] == list(range(start, len(example.token_ids)))


def test_a_template_that_ends_no_answer_gets_an_end(tmp_path: Path) -> None:
    tokenizer = with_template(ENDLESS)
    (examples,) = load(tmp_path, tokenizer, [message(*each) for each in TALK])
    assert [shown(tokenizer, example)[1] for example in examples] == [["46<|eos|>"], ["80<|eos|>"]]


def test_without_a_template_an_answer_follows_on_the_lines_before_it(tmp_path: Path) -> None:
    tokenizer = with_template(None)
    (example,) = load(tmp_path, tokenizer, [message("user", USER), message("assistant", FIRST)])[0]
    assert shown(tokenizer, example) == ("12+34=46<|eos|>", ["46<|eos|>"])


def test_a_template_that_cannot_ask_for_what_it_writes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"line 1: the model's chat template asks for an answer with '\?'"):
        load(tmp_path, with_template(OPENING), [message("user", USER), message("assistant", FIRST)])


def test_a_refused_prompt_is_quoted_from_where_it_parts_and_not_at_length(tmp_path: Path) -> None:
    asks = "?" * 2 * conversations.MAX_QUOTED
    template = OPENING.replace("<|assistant|>?", f"<|assistant|>{asks}")
    # Comparing each beginning of a prompt this long with the conversation would take minutes.
    row = [message("user", "1" * 1_000_000), message("assistant", FIRST)]
    with pytest.raises(RunError) as refused:
        load(tmp_path, with_template(template), row)
    assert f"asks for an answer with '{asks[: conversations.MAX_QUOTED]}', but" in refused.value.message


def test_a_token_across_prompt_and_answer_is_split_as_the_model_will_be_asked(tmp_path: Path) -> None:
    vocabulary = {token: number for number, token in enumerate([*"0123456789+=", "=4", "<|eos|>"])}
    merging = Tokenizer(models.BPE(vocabulary, [("=", "4")]))
    merging.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=merging,
        eos_token="<|eos|>",
        chat_template="{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    assert tokenizer.tokenize("1+3=4") == ["1", "+", "3", "=4"]
    ((example,),) = load(tmp_path, tokenizer, [message("user", "1+3="), message("assistant", "4")])
    assert tokenizer.convert_ids_to_tokens(example.token_ids) == ["1", "+", "3", "=", "4", "<|eos|>"]
    assert example.learned == [4, 5]


def test_arguments_of_tool_calls_reach_the_template_as_values(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 41}'}}
    tokenizer = with_template(CALLS)
    ((example,),) = load(tmp_path, tokenizer, [message("user", USER), message("assistant", None, tool_calls=[call])])
    assert shown(tokenizer, example)[1] == ["42<|eos|>"]


@pytest.mark.parametrize("template", [PLAIN, None])
@pytest.mark.parametrize("content", [None, "See:"])
def test_calls_that_the_model_has_no_notation_for_are_refused_in_words(
    tmp_path: Path, template: str | None, content: str | None
) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 41}'}}
    with pytest.raises(RunError, match=r"line 1: messages\[1\] calls tools, and the model has .*no") as refusal:
        load(
            tmp_path, with_template(template), [message("user", USER), message("assistant", content, tool_calls=[call])]
        )
    assert "concatenate" not in str(refusal.value)


def test_every_line_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    good = [message("user", USER), message("assistant", FIRST)]
    unlearned = [good[0], good[1] | {"weight": 0}]
    long = [message("user", "1" * 70), good[1]]
    with pytest.raises(RunError) as refused:
        load(tmp_path, with_template(PLAIN), good, "{", unlearned, "", long)
    assert (refused.value.code, refused.value.param) == ("invalid_file", "training_file")
    for said in (
        "line 2: not JSON",
        "line 3: no message",
        "line 5: the conversation has 76 tokens; the model's context",
    ):
        assert said in refused.value.message


@pytest.mark.parametrize("longest_shared", [0, 64])
def test_micro_batches_hold_every_learned_token_once_and_keep_to_the_budget(
    tmp_path: Path, longest_shared: int
) -> None:
    tokenizer = with_template(PLAIN)
    asked = ["1+1=", "12+34=", "1234+5678+1234+56=", "2+2="]
    rows = load(tmp_path, tokenizer, *([message("user", each), message("assistant", "46")] for each in asked))
    examples = [example for row in rows for example in row]
    batches = supervised.micro_batches(examples, 50, torch.device("cpu"), longest_shared)
    assert len(batches) > 1
    assert any(batch.layout is not None for batch in batches) == (longest_shared > 0)
    learned = []
    for batch in batches:
        assert batch.input_ids.numel() <= 50
        flat = batch.input_ids.flatten()
        for position, token in zip(batch.positions.tolist(), batch.tokens.tolist(), strict=True):
            learned.append((int(flat[position]), token))
    wanted = [
        (example.token_ids[place - 1], example.token_ids[place]) for example in examples for place in example.learned
    ]
    assert sorted(learned) == sorted(wanted)
