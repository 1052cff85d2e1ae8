"""The README's tables of hyperparameters, written from their declarations.

``make tables`` rewrites them in the ``README.md`` of the folder that it is run in.
"""

import re
from pathlib import Path
from typing import Any, get_args

from service.jobs.hyperparameters.option import Option, ToldToTemplates, options
from service.jobs.hyperparameters.reinforcement import ResolvedHyperparameters
from service.jobs.methods.registry import METHODS
from service.jobs.methods.reinforcement import Reinforcement


def rewritten(text: str) -> str:
    """``text`` with the tables between its markers as they are now: all of reinforcement's, and how others differ.

    Raises ``ValueError`` where a marker is missing.
    """
    whole = options(ResolvedHyperparameters)
    text = _between(text, "reinforcement", _table("hyperparameter", ResolvedHyperparameters, whole))
    for name, kind in METHODS.items():
        if kind is not Reinforcement:
            declared = options(kind.asked.resolved)
            shared = [each for each, option in declared.items() if whole.get(each) == option]
            own = {each: option for each, option in declared.items() if each not in shared}
            text = _between(text, f"{name}, shared", ", ".join(f"`{each}`" for each in shared) + ".")
            text = _between(text, name, _table(f"{name} hyperparameter", kind.asked.resolved, own))
    return text


def _between(text: str, name: str, content: str) -> str:
    start, end = f"<!-- hyperparameters: {name} -->\n", f"\n\n<!-- end of hyperparameters: {name} -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"the markers of the hyperparameters '{name}' are not there once each")
    before, rest = text.split(start)
    return f"{before}{start}{content}{end}{rest.split(end)[1]}"


def _table(title: str, kind: type[ToldToTemplates], declared: dict[str, Option]) -> str:
    lines = [f"| {title} | default | allowed | what it does |", "| --- | --- | --- | --- |"]
    for name, option in declared.items():
        type_ = kind.model_fields[name].annotation
        doc = f"{option.applies_to}: {option.doc}" if option.applies_to else option.doc
        lines.append(f"| `{name}` | {_default(option)} | {_allowed(type_, option)} | {doc} |")
    return "\n".join(lines)


def _default(option: Option) -> str:
    if option.auto is not None:
        return f"auto: {option.auto.says or option.auto.value}"
    if option.default is None:
        return "none"
    if isinstance(option.default, bool):
        return f"`{str(option.default).lower()}`"
    return _number(option.default) if isinstance(option.default, int | float) else f"`{option.default}`"


def _allowed(type_: Any, option: Option) -> str:
    if option.allowed:
        return option.allowed
    if type_ is bool:
        return "`true`, `false`"
    if words := get_args(type_):
        return ", ".join(f"`{word}`" for word in words)
    low = _number(option.ge) if option.ge is not None else f"above {_number(option.gt)},"
    high = _number(option.le) if option.le is not None else f"below {_number(option.lt)}"
    return f"{low} to {high}"


def _number(value: float | None) -> str:
    """As one writes it: 1.0 for a default of that, 1e-5 for 1e-05."""
    return re.sub(r"e-0*", "e-", str(value))


if __name__ == "__main__":
    readme = Path("README.md")
    readme.write_text(rewritten(readme.read_text()))
