"""Talking to models with the official client: a real API, a real serving worker, a tiny model."""

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from service.cli import app
from service.core import live
from service.core.db import tenant
from service.inference import exchange
from service.models import service as models
from service.settings import settings
from service.usage import meter
from tests.conftest import Key
from tests.contract.conftest import Official, Server
from tests.contract.serving import MODEL, ServingWorker, serving_worker
from tests.workers.serving import tiny
from workers.jobs import supervisor

__all__ = ["serving_worker"]

HELLO: list[Any] = [{"role": "user", "content": "Hello there, fox."}]
WEATHER: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]

pytestmark = pytest.mark.usefixtures("serving_worker")


def say(client: openai.OpenAI, **options: Any) -> Any:
    """A short answer to ``HELLO``, greedy unless told otherwise."""
    defaults = {"model": MODEL, "messages": HELLO, "max_completion_tokens": 12, "temperature": 0}
    return client.chat.completions.create(**{**defaults, **options})


def content(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def greedy(prompt: str, tokens: int) -> str:
    """What transformers' own ``generate`` says."""
    folder = settings().models_dir / MODEL
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), tiny.tokenizer()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    said = model.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :]
    return str(tokenizer.decode(said, skip_special_tokens=True))


def test_an_answer_with_its_usage(official: Official) -> None:
    answer = official.ask(
        official.client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=12, seed=5)
    )
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def used(client: openai.OpenAI) -> list[tuple[str, int, int, int]]:
    """Model, requests, input and output tokens of the last hour."""
    meter.write()
    query = {"start_time": int(time.time()) - 3600, "group_by": "model", "bucket_width": "1d"}
    page: Any = client.get("/organization/usage/completions", cast_to=object, options={"params": query})
    return [
        (each["model"], each["num_model_requests"], each["input_tokens"], each["output_tokens"])
        for bucket in page["data"]
        for each in bucket["results"]
    ]


@pytest.mark.parametrize("streamed", [False, True])
def test_tokens_are_counted_for_the_organisation(
    connect: Callable[..., openai.OpenAI], new_key: Callable[..., Key], streamed: bool
) -> None:
    client, other = connect(new_key()), connect(new_key(organization="globex"))
    if streamed:
        *_, last = say(client, stream=True, stream_options={"include_usage": True})
    else:
        last = say(client)
    assert used(client) == [(MODEL, 1, last.usage.prompt_tokens, 12)]
    assert used(other) == []


def test_what_a_reader_left_is_counted_too(connect: Callable[..., openai.OpenAI], new_key: Callable[..., Key]) -> None:
    client = connect(new_key())
    stream = say(client, stream=True, max_completion_tokens=3000)
    said = 0
    for chunk in stream:
        said += len(chunk.choices[0].delta.content or "")
        if said > 40:
            break
    stream.close()
    until = time.monotonic() + 30
    while not (rows := used(client)):
        assert time.monotonic() < until
        time.sleep(0.05)
    [(_, requests, _, output)] = rows
    assert requests == 1
    assert 10 <= output < 3000


def test_a_stream_says_what_the_whole_answer_says(official: Official) -> None:
    asked = {"model": MODEL, "messages": HELLO, "max_completion_tokens": 40, "seed": 6}
    whole = official.ask(official.client.chat.completions.create(**asked))
    stream = official.ask(
        official.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    *chunks, last = official.everything(stream)
    assert {chunk.id for chunk in chunks} == {last.id}
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == content(whole)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert (last.choices, last.usage) == ([], whole.usage)


def test_frames_are_data_and_comments_only(server: Server, api_key: Key) -> None:
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 3, "stream": True}
    answer = httpx2.post(
        f"{server.base_url}/chat/completions", json=body, headers={"Authorization": f"Bearer {api_key.plain}"}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n") if line]
    assert all(line.startswith(("data: ", ": ")) for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_greedy_is_what_generate_says(acme: openai.OpenAI) -> None:
    prompt = f"<|im_start|>user\n{HELLO[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    assert content(say(acme, max_completion_tokens=60)) == greedy(prompt, 60)


def test_a_seed_gives_the_same_choices_again_and_another_does_not(acme: openai.OpenAI) -> None:
    first, again, other = (
        [choice.message.content for choice in say(acme, n=3, seed=seed, temperature=1).choices] for seed in (1, 1, 2)
    )
    assert first == again
    assert len({*first, *other}) == 6


def test_choices_count_in_the_usage(acme: openai.OpenAI) -> None:
    answer = say(acme, n=3, temperature=1, logit_bias={str(tiny.tokenizer().eos_token_id): -100})
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 36


def test_streamed_choices_come_under_their_index(acme: openai.OpenAI) -> None:
    whole = [choice.message.content for choice in say(acme, n=2, seed=3, temperature=1).choices]
    texts = ["", ""]
    for chunk in say(acme, n=2, seed=3, temperature=1, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == whole


def test_a_stop_string_ends_the_answer_and_is_not_shown(acme: openai.OpenAI) -> None:
    whole = content(say(acme, max_completion_tokens=60))
    stop = whole[20:24]
    answer = say(acme, max_completion_tokens=60, stop=[stop, "never said"])
    assert content(answer) == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(say(acme, max_completion_tokens=60, stop=stop, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == content(answer)


def test_the_end_token_ends_the_answer(acme: openai.OpenAI) -> None:
    end = tiny.tokenizer().eos_token_id
    answer = say(acme, logit_bias={str(end): 100})
    assert (content(answer), answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("", "stop", 1)


def test_log_probabilities(acme: openai.OpenAI) -> None:
    answer = say(acme, logprobs=True, top_logprobs=3)
    scored = answer.choices[0].logprobs.content
    assert len(scored) == 12
    for each in scored:
        assert each.logprob < 0
        assert len(each.top_logprobs) == 3
        # Greedy takes the most likely one.
        assert (each.token, each.logprob) == (each.top_logprobs[0].token, each.top_logprobs[0].logprob)
        assert each.bytes is None or bytes(each.bytes).decode() == each.token
    streamed = [
        each
        for chunk in say(acme, logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices[0].logprobs
        for each in chunk.choices[0].logprobs.content
    ]
    assert streamed == scored


def test_nothing_is_scored_unless_asked(acme: openai.OpenAI) -> None:
    assert say(acme).choices[0].logprobs is None


def test_a_frequency_penalty_makes_repetition_rarer(acme: openai.OpenAI) -> None:
    end = str(tiny.tokenizer().eos_token_id)
    plain, punished = (
        content(say(acme, max_completion_tokens=120, frequency_penalty=penalty, logit_bias={end: -100}))
        for penalty in (0, 2)
    )
    assert len(set(punished)) > len(set(plain))


def test_eight_streams_at_once_say_what_each_says_alone(acme: openai.OpenAI, server: Server, api_key: Key) -> None:
    def asked(number: int) -> dict[str, Any]:
        message = {"role": "user", "content": "fox " * (1 + 3 * number)}
        return {"model": MODEL, "messages": [message], "max_completion_tokens": 20 + 5 * number, "temperature": 0}

    async def stream(client: openai.AsyncOpenAI, number: int) -> str:
        text = ""
        async for chunk in await client.chat.completions.create(**asked(number), stream=True):
            text += chunk.choices[0].delta.content or ""
        return text

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(api_key=api_key.plain, base_url=server.base_url, timeout=60) as client:
            return await asyncio.gather(*(stream(client, number) for number in range(8)))

    alone = [content(acme.chat.completions.create(**asked(number))) for number in range(8)]
    assert asyncio.run(together()) == alone


def test_completions_go_on_from_texts_and_from_tokens(official: Official) -> None:
    text = "The quick brown"
    ids = tiny.tokenizer()(text)["input_ids"]
    create = official.client.completions.create
    answer = official.ask(create(model=MODEL, prompt=[text, ids], temperature=0, echo=True))
    assert answer.object == "text_completion"
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.text for choice in answer.choices} == {text + greedy(text, 16)}
    assert answer.usage.prompt_tokens == 2 * len(ids)
    assert answer.usage.completion_tokens == 32


def test_streamed_completions(official: Official) -> None:
    create = official.client.completions.create
    asked = {"model": MODEL, "prompt": "The quick", "temperature": 0, "max_tokens": 8, "logprobs": 2}
    whole = official.ask(create(**asked)).choices[0]
    if official.strict:
        pytest.skip("the client's type has no chunk whose choice goes on: its finish_reason cannot be null")
    chunks = official.everything(official.ask(create(**asked, stream=True)))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    scored = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for each in scored for token in each.tokens] == whole.logprobs.tokens
    assert whole.logprobs.text_offset[0] == 0
    assert len(whole.logprobs.token_logprobs) == 8


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": WEATHER, "tool_choice": "required"}, "tool_choice"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"messages": [{"role": "user", "content": "x y " * 3000}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": []}, "messages"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"extra_body": {"top_k": 3}}, "top_k"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
    ],
)
def test_what_is_not_served_is_refused_by_name(acme: openai.OpenAI, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        say(acme, **options)
    assert (refusal.value.param or "").startswith(param)


@pytest.mark.parametrize("where", ["messages", "tools"])
def test_text_that_is_no_unicode_is_refused(server: Server, api_key: Key, where: str) -> None:
    half = "\\ud800"
    content, description = (half, "d") if where == "messages" else ("c", half)
    messages = f'[{{"role": "user", "content": "{content}"}}]'
    tools = f'[{{"type": "function", "function": {{"name": "f", "parameters": {{"description": "{description}"}}}}}}]'
    body = f'{{"model": "{MODEL}", "messages": {messages}, "tools": {tools}}}'
    answer = httpx2.post(
        f"{server.base_url}/chat/completions",
        content=body,
        headers={"Authorization": f"Bearer {api_key.plain}", "Content-Type": "application/json"},
    )
    assert answer.status_code == 400, answer.text


def test_a_refusal_comes_before_a_stream_begins(acme: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        say(acme, stream=True, messages=[{"role": "user", "content": "x y " * 3000}])
    assert refusal.value.code == "context_length_exceeded"


def test_unknown_models_are_not_found(official: Official) -> None:
    with pytest.raises(openai.NotFoundError) as refusal:
        official.ask(official.client.chat.completions.create(model="tiny/none", messages=HELLO))
    assert (refusal.value.code, refusal.value.param) == ("model_not_found", "model")


def test_what_has_no_effect_is_taken(acme: openai.OpenAI) -> None:
    assert content(say(acme, user="me", store=True, metadata={"a": "b"}, reasoning_effort="low")) == content(say(acme))


def test_json_schemas_hold_the_answer(acme: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large"]}, "count": {"type": "integer", "maximum": 99}},
        "required": ["size", "count"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    for seed in range(3):
        answer = say(acme, response_format=wanted, temperature=1, seed=seed, max_completion_tokens=200)
        assert answer.choices[0].finish_reason == "stop"
        assert json.loads(content(answer))["size"] in ("small", "large")


def test_an_impossible_schema_is_refused(acme: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError) as refusal:
        say(acme, response_format=wanted)
    assert refusal.value.param == "response_format"


def told(client: openai.OpenAI, model: str = MODEL, **values: Any) -> int:
    """How long a prompt is whose template is told ``values``."""
    options = {"extra_body": {"chat_template_kwargs": values}} if values else {}
    return int(say(client, model=model, **options).usage.prompt_tokens)


def test_the_template_is_told_what_the_request_says(acme: openai.OpenAI) -> None:
    plain = told(acme)
    assert told(acme, enable_thinking=False) > plain
    assert told(acme, enable_thinking=True) == plain


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"thinking": False}, "does not read 'thinking'. It reads: enable_thinking."),
        ({"strftime_now": 1}, "does not read 'strftime_now'"),
        ({"messages": []}, "'messages' is what the service itself tells"),
        ({"eos_token": "x"}, "'eos_token' is what the service itself tells"),
        ({"enable_thinking": "x" * 20_000}, "at most 16384 are allowed"),
        ([1], "an object"),
    ],
)
def test_what_a_template_cannot_be_told_is_named(acme: openai.OpenAI, values: Any, why: str) -> None:
    with pytest.raises(openai.BadRequestError, match=why) as refusal:
        say(acme, extra_body={"chat_template_kwargs": values})
    assert refusal.value.param == "chat_template_kwargs"


def test_tools_are_shown_to_the_model(acme: openai.OpenAI) -> None:
    with_tools, without, ignored = (
        say(acme, **options).usage.prompt_tokens
        for options in ({"tools": WEATHER}, {}, {"tools": WEATHER, "tool_choice": "none"})
    )
    assert with_tools > without == ignored


@pytest.fixture
def tuned(stub: None, acme: openai.OpenAI, body: dict[str, Any], api_key: Key) -> str:
    """A tuned model of ``acme``: an adapter on ``MODEL``. Its second checkpoint has weights of its own."""
    id = acme.fine_tuning.jobs.create(**body).id
    supervisor.run("worker-1")
    model = acme.fine_tuning.jobs.retrieve(id).fine_tuned_model
    assert model is not None
    with tenant(api_key) as session:
        tuned, checkpoint = (models.find(session, id, param=None).path for id in (model, f"{model}:ckpt-step-2"))
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    config.base_model_name_or_path = MODEL
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(settings().models_dir / MODEL), config)
    adapted.peft_config["default"].base_model_name_or_path = MODEL
    adapted.save_pretrained(tuned / "adapter", save_embedding_layers=False)
    shutil.rmtree(checkpoint)
    tiny.save(checkpoint, seed=1)
    return model


def test_tuned_models_and_checkpoints_answer_their_owner_alone(
    tuned: str,
    acme: openai.OpenAI,
    connect: Callable[..., openai.OpenAI],
    new_key: Callable[..., Key],
    serving_worker: ServingWorker,
) -> None:
    base = content(say(acme))
    loaded = serving_worker.hosts()
    adapted = content(say(acme, model=tuned))
    assert serving_worker.hosts() == loaded, "an adapter does not need another copy of its base"
    checkpoint = content(say(acme, model=f"{tuned}:ckpt-step-2"))
    assert len({base, adapted, checkpoint}) == 3
    assert content(say(acme)) == base
    with pytest.raises(openai.NotFoundError):
        say(connect(new_key(organization="globex")), model=tuned)
    second = new_key(project="second")
    neighbour = connect(second)
    with pytest.raises(openai.NotFoundError):
        say(neighbour, model=tuned)
    acme.fine_tuning.checkpoints.permissions.create(tuned, project_ids=[second.project_id])
    assert content(say(neighbour, model=tuned)) == adapted


@pytest.mark.parametrize("part", ["", ":ckpt-step-2"])
def test_a_tuned_model_is_asked_as_it_was_trained_unless_the_request_says_otherwise(
    tuned: str, part: str, acme: openai.OpenAI, api_key: Key
) -> None:
    plain = told(acme)
    with tenant(api_key) as session:
        folder = models.find(session, tuned + part, param=None).path
    (folder / "chat_template_kwargs.json").write_text('{"enable_thinking": false}')
    assert told(acme, tuned + part) == told(acme, enable_thinking=False) > plain
    assert told(acme, tuned + part, enable_thinking=True) == plain


@pytest.mark.parametrize("content", ["[1]", "{", '{"messages": []}', "[" * 5000])
def test_a_folder_that_remembers_nonsense_is_refused(
    tuned: str, content: str, acme: openai.OpenAI, api_key: Key
) -> None:
    with tenant(api_key) as session:
        folder = models.find(session, tuned, param=None).path
    (folder / "chat_template_kwargs.json").write_text(content)
    with pytest.raises(openai.BadRequestError, match="the model's chat_template_kwargs") as refusal:
        say(acme, model=tuned)
    assert (refusal.value.code, refusal.value.param) == ("invalid_model", "model")


def test_chat_on_the_command_line(
    acme: openai.OpenAI, server: Server, api_key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", api_key.plain)
    asked = ["chat", MODEL, HELLO[0]["content"], "--temperature", "0", "--max-tokens", "12"]
    said = CliRunner().invoke(app, asked)
    assert (said.exit_code, said.stdout) == (0, content(say(acme)) + "\n"), said.output
    refused = CliRunner().invoke(app, ["chat", "tiny/none", "Hello"])
    assert refused.exit_code == 1
    assert "does not exist" in refused.stderr


def unread_of(answer: str) -> int:
    return live.client().llen(exchange.events_key(answer))


def test_a_client_that_hangs_up_ends_the_generation(acme: openai.OpenAI) -> None:
    stream = say(acme, max_completion_tokens=4000, stream=True, logit_bias={str(tiny.tokenizer().eos_token_id): -100})
    first = next(iter(stream))
    stream.close()
    until = time.monotonic() + 30
    unread, quiet_since = unread_of(first.id), time.monotonic()
    # What was on its way when the reader left may stay unread; nothing may follow it.
    while time.monotonic() - quiet_since < 0.5:
        assert time.monotonic() < until, "the model goes on although nobody listens"
        if unread_of(first.id) != unread:
            unread, quiet_since = unread_of(first.id), time.monotonic()
        time.sleep(0.005)


def forever(client: openai.OpenAI, **options: Any) -> Any:
    """A stream that goes on for a long while, after its first chunk of text."""
    bias = {str(tiny.tokenizer().eos_token_id): -100}
    stream = say(client, max_completion_tokens=4000, stream=True, logit_bias=bias, **options)
    for chunk in stream:
        if chunk.choices[0].delta.content:
            return stream
    raise AssertionError("the stream ended at once")


def test_a_model_that_dies_is_an_error_in_the_stream_and_loaded_again(
    acme: openai.OpenAI, serving_worker: ServingWorker
) -> None:
    stream = forever(acme)
    for host in serving_worker.hosts():
        host.kill()
    with pytest.raises(openai.APIError) as failure:
        list(stream)
    assert failure.value.code == "model_process_ended"
    assert content(say(acme))


def test_a_worker_that_dies_is_an_error_in_the_stream(acme: openai.OpenAI, serving_worker: ServingWorker) -> None:
    stream, hosts = forever(acme), serving_worker.hosts()
    serving_worker.kill()
    with pytest.raises(openai.APIError) as failure:
        list(stream)
    assert failure.value.code == "worker_lost"
    until = time.monotonic() + 10
    while any(host.is_running() and host.status() != "zombie" for host in hosts):
        assert time.monotonic() < until, "the model's process outlives its worker"
        time.sleep(0.05)


def test_without_a_worker_the_answer_is_503(acme: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "NO_WORKER_SECONDS", 0.5)
    live.client().delete(exchange.ANY_WORKER)
    with pytest.raises(openai.InternalServerError) as refusal:
        say(acme.with_options(max_retries=0))
    assert (refusal.value.status_code, refusal.value.code) == (503, "no_serving_worker")
    assert not live.client().keys("serving:question:*")


@pytest.fixture(scope="module")
def vllm(serving_worker: ServingWorker) -> Iterator[None]:
    """The worker that was killed, started again with the other engine."""
    serving_worker.kill()
    serving_worker.start(TROLL_SERVING_ENGINE="vllm")
    yield
    serving_worker.stop()
    serving_worker.start()


def test_vllm_answers_the_same(vllm: None, acme: openai.OpenAI) -> None:
    patient = acme.with_options(timeout=120)
    prompt = f"<|im_start|>user\n{HELLO[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
    answer = say(patient, max_completion_tokens=40, logprobs=True, top_logprobs=2)
    assert content(answer) == greedy(prompt, 40)
    assert len(answer.choices[0].logprobs.content) == 40
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    first, again = (
        [choice.message.content for choice in say(patient, n=3, seed=1, temperature=1).choices] for _ in "12"
    )
    assert first == again
    assert len(set(first)) == 3
    with pytest.raises(openai.BadRequestError):
        say(patient, logit_bias={"999999": 1})
