"""``troll chat``: one question to a model, its answer as it comes."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.connection import StackFolder, connect

if TYPE_CHECKING:
    from openai import OpenAI


def chat(
    model: Annotated[str, typer.Argument(help="A model's id, as 'troll models list' shows it.")],
    prompt: Annotated[str | None, typer.Argument(help="What to say. Default: what standard input holds.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 1.0,
    system: Annotated[str | None, typer.Option(help="A message from the system before it.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Let it go on with the prompt, without a chat template.")] = False,
    data_dir: StackFolder = None,
) -> None:
    """Ask a model something. What it thinks before it answers goes to standard error."""
    if raw:
        _complete(connect(data_dir), model, prompt if prompt is not None else sys.stdin.read(), temperature, max_tokens)
        return
    messages: list[Any] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt if prompt is not None else sys.stdin.read()})
    stream = connect(data_dir).chat.completions.create(
        model=model, messages=messages, temperature=temperature, stream=True, max_completion_tokens=max_tokens
    )
    for chunk in stream:
        delta = chunk.choices[0].delta
        typer.echo(getattr(delta, "reasoning_content", None) or "", nl=False, err=True)
        typer.echo(delta.content or "", nl=False)
        sys.stdout.flush()
    typer.echo()


def _complete(client: "OpenAI", model: str, prompt: str, temperature: float, max_tokens: int | None) -> None:
    stream = client.completions.create(
        model=model, prompt=prompt, temperature=temperature, stream=True, max_tokens=max_tokens
    )
    for chunk in stream:
        typer.echo(chunk.choices[0].text, nl=False)
        sys.stdout.flush()
    typer.echo()
