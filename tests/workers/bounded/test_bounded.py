"""What templates and schemas may take, and that one that takes too much costs nobody else anything."""

import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.workers.serving import tiny
from workers.bounded import client, templates
from workers.bounded.tasks import HERE, MAX_CHARACTERS, Compile, Names, Render
from workers.demo import make_tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = (
    "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}"
    "{% endfor %}{% endfor %}{% endfor %}"
)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "title": "é<&>"}}}]


def render(template: str, **changes: Any) -> Render:
    defaults = {
        "special_tokens": {"eos_token": "</s>"},
        "messages": HELLO,
        "tools": None,
        "answer_next": True,
        "most": MAX_CHARACTERS,
        "values": {},
        "now": None,
    }
    return Render(**{"kind": "render", "template": template, **defaults, **changes})  # type: ignore[typeddict-item]


def compile(schema: dict[str, Any]) -> Compile:
    return Compile(kind="compile", schema=schema)


@pytest.mark.parametrize(
    "template",
    [
        tiny.TEMPLATE,
        str(make_tokenizer().chat_template),
        "{%- for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\n{{- m.content | trim }}{% endfor %}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}{{ eos_token }}{{ missing | default('none') }}",
        "{{ messages | tojson }}{{ tools | tojson(indent=2) }}{{ messages | tojson(ensure_ascii=True) }}",
        "{% set n = namespace(n=0) %}{% for m in messages %}{% set n.n = n.n + loop.index %}{% endfor %}{{ n.n }}",
        "{%- macro f(m) %}{{ m.role }}\n{% endmacro -%}\n{% for m in messages[::-1] %}{{ f(m) }}{% endfor %}",
        "{% if documents is none and add_generation_prompt %}{{ strftime_now('%Y') }}{% endif %}",
        "{{ messages[0]['content'].split('l')[-1] ~ messages[0].get('name', '-') }}",
    ],
)
@pytest.mark.parametrize("answer_next", [True, False])
def test_a_template_writes_what_transformers_writes(template: str, answer_next: bool) -> None:
    messages = [*HELLO, {"role": "user", "content": " Größe, 東京 ", "name": None}]
    tokenizer = tiny.tokenizer(template)
    expected = tokenizer.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=answer_next, tokenize=False)
    known = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    task = render(template, messages=messages, tools=TOOLS, answer_next=answer_next, special_tokens=known)
    assert client.run([task]) == [{"text": expected}]


READS = (
    "{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}{{ enable_thinking }}"
    "{%- set day = day | default('Monday') %}{{ day }}{%- macro of(m, n=none) %}{{ m }}{{ notes[0].a }}{% endmacro %}"
    "{{ of(1) }}{% for m in messages %}{% set text = m.content %}{{ text }}{% endfor %}{{ bos_token }}"
)


def test_a_template_is_told_what_transformers_tells_it() -> None:
    values = {"enable_thinking": False, "day": "é", "notes": [{"a": 1.5}], "unread": None}
    expected = tiny.tokenizer(READS).apply_chat_template(HELLO, tokenize=False, **values)
    task = render(READS, values=values, special_tokens={}, answer_next=False)
    assert client.run([task]) == [{"text": expected}]


def test_the_names_that_a_template_reads_are_found() -> None:
    names = ["bos_token", "day", "enable_thinking", "messages", "notes"]
    assert client.run([Names(kind="names", template=READS)]) == [{"names": names}]
    (refused,) = client.run([Names(kind="names", template="{% broken")])
    assert "the model's chat template cannot be read" in refused["refused"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%d %b %Y %H:%M') }}",
        "{% macro today() %}{{ strftime_now('%d %b %Y %H:%M') }}{% endmacro %}{{ today() }}",
        "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y %H:%M') %}{{ day }}{% endif %}",
    ],
)
def test_a_template_is_told_the_time_that_was_asked_for(template: str) -> None:
    frozen, now = client.run([render(template, now="2024-07-26T23:59:00+00:00"), render(template)])
    assert frozen == {"text": "26 Jul 2024 23:59"}
    assert now != frozen


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt", "eos_token"])
def test_nothing_takes_the_place_of_what_the_service_tells(name: str) -> None:
    template = f"{{{{ {name} | tojson }}}}"
    plain, other = client.run([render(template), render(template, values={name: "other"})])
    assert plain == other


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('system messages are not known') }}", "system messages are not known"),
        ("{% broken", "broken"),
        ("{{ messages[0].missing.name }}", "missing"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages[0].__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ],
)
def test_what_a_template_refuses_is_told_in_its_words(template: str, why: str) -> None:
    (answer,) = client.run([render(template)])
    assert why in answer["refused"]
    assert "exceeded" not in answer


@pytest.mark.parametrize(
    "template",
    [
        "{% set ns = namespace(s='xxxx') %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ messages[0].content | center(10 ** 12) }}",
        "{{ '%1000000000000d' | format(1) }}",
        "{% set l = range(100000) | list %}{{ (l * 100000) | length }}",
        "{% for a in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
        pytest.param(ENDLESS, id="endless"),
    ],
)
def test_a_template_that_takes_too_much_costs_its_neighbours_nothing(template: str) -> None:
    ok = {"text": "Hello"}
    plain = render("{{ messages[0].content }}")
    first, refused, last = client.run([plain, render(template), plain])
    assert (first, last) == (ok, ok)
    assert refused["exceeded"]
    assert "chat template takes more than" in refused["refused"]


def test_the_longest_text_is_whole() -> None:
    (answer,) = client.run([render(f"{{{{ 'x' * {MAX_CHARACTERS} }}}}")])
    assert len(answer["text"]) == MAX_CHARACTERS


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 10**9},
        {"type": "array", "items": {"type": "object"}, "maxItems": 10**9},
        {"anyOf": [{"type": "array", "prefixItems": [{}], "minItems": 10**8}, {"type": "string"}]},
    ],
)
def test_a_schema_that_takes_all_memory_is_refused(schema: dict[str, Any]) -> None:
    refused, accepted = client.run([compile(schema), compile({"type": "string"})])
    assert refused["refused"]
    assert accepted == {}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"$ref": "http://127.0.0.1/schema"},
        {"type": "string", "pattern": "(?=a)b"},
        {"type": "string", "pattern": "(a"},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "integer", "multipleOf": 1000000007},
        {"type": "integer", "maximum": 10**400},
        {"type": "array", "minItems": -1},
        {"type": "array", "minItems": 2.5},
        {"allOf": [{"type": "string", "pattern": f"^(a|b)*a(a|b){{{n}}}$"} for n in range(3, 14)]},
        {"not": {"type": "string"}},
        {"const": float("nan")},
    ],
)
def test_schemas_that_no_answer_can_be_held_to_are_refused(schema: dict[str, Any]) -> None:
    (answer,) = client.run([compile(schema)])
    assert answer["refused"]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": {"$ref": "#"}}},
        {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 3, "maxItems": 1000},
        {"type": "string", "pattern": "(a{1000}){1000}"},
        {"type": "string", "minLength": 1000, "maxLength": 100000},
        {"enum": [f"value {number}" for number in range(1000)]},
        {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(300)}},
    ],
)
def test_ordinary_schemas_are_taken(schema: dict[str, Any]) -> None:
    assert client.run([compile(schema)]) == [{}]


def test_a_process_that_is_killed_ends_at_once() -> None:
    server = client.Server()
    name, connection = server.begin()
    (process,) = _children(server)
    connection.settimeout(30)
    received = connection.makefile("rb")
    assert received.readline() == HERE
    server.kill(name)
    assert received.read() == b""
    psutil.wait_procs([process], timeout=30)
    assert not _alive(process)
    server.close()


def test_a_server_that_dies_is_started_again() -> None:
    client.run([render("x")])
    server = client._shared(os.getpid())
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert client.run([render("x")]) == [{"text": "x"}]


def test_a_server_ends_with_whoever_started_it(tmp_path: Path) -> None:
    server = client.Server()
    _, connection = server.begin()
    assert server.pid is not None
    processes = [psutil.Process(server.pid), *_children(server)]
    server._control.close()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not [process for process in alive if _alive(process)]
    connection.close()


def test_a_learned_template_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    templates.learn("{{ messages[0].content }}!")
    monkeypatch.delattr(templates, "_environment")
    assert templates.render(render("{{ messages[0].content }}!")) == {"text": "Hello!"}


@pytest.mark.parametrize(
    "template",
    ["{% broken", "{{ 'x' * 999999999 }}" * 10, "{{ " + "(" * 100_000, "{{ a }}" * 3_000_000],
    ids=["broken", "large", "deep", "long"],
)
def test_a_template_that_cannot_be_learned_ends_nobody(template: str) -> None:
    server = client.Server()
    server.start()
    pid = server.pid
    server.learn(template)
    with server.begin()[1] as connection:
        connection.settimeout(60)
        connection.sendall(json.dumps([render("x")]).encode())
        connection.shutdown(socket.SHUT_WR)
        assert client.read(connection.makefile("rb").read()) == [{"text": "x"}]
    assert server.pid == pid
    assert pid is not None
    assert psutil.Process(pid).memory_info().rss < 400 << 20
    server.close()


def test_the_server_is_small() -> None:
    client.run([render("x"), compile({})])
    pid = client._shared(os.getpid()).pid
    assert pid is not None
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert not [library for library in ("libtorch", "transformers", "numpy") if library in maps]


def _children(server: client.Server) -> list[psutil.Process]:
    assert server.pid is not None
    until = time.monotonic() + 30
    while not (found := psutil.Process(server.pid).children()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_the_server_takes_a_descriptor_of_somebody_who_has_many_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip(f"no process here may have more than {hard} files open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    ours, theirs = socket.socketpair()
    try:
        high = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD, 1100)
        server = subprocess.Popen([sys.executable, "-m", "workers.bounded", str(high)], pass_fds=(high,))
        os.close(high)
    finally:
        theirs.close()
        ours.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert server.wait(60) == 0
