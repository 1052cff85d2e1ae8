"""One declaration decides what may be asked for, what is resolved, and what is said of both."""

from typing import Annotated, Any

import pytest
from pydantic import ValidationError

from service.jobs.hyperparameters.option import (
    AUTO,
    Asked,
    Auto,
    Frozen,
    Installation,
    Option,
    Overrule,
    ToldToTemplates,
    asked_of,
    conflicts,
    options,
    overruled,
    resolve,
)
from service.jobs.hyperparameters.reinforcement import Hyperparameters, ResolvedHyperparameters
from service.jobs.hyperparameters.supervised import ResolvedSupervisedHyperparameters, SupervisedHyperparameters

KINDS: list[tuple[Any, Any]] = [
    (Hyperparameters, ResolvedHyperparameters),
    (SupervisedHyperparameters, ResolvedSupervisedHyperparameters),
]
BOUNDED = [(asked, name) for asked, kind in KINDS for name, option in options(kind).items() if option.bounds]


class Oven(ToldToTemplates):
    """Resolved settings of something else than a job."""

    chat_template_kwargs: Annotated[dict[str, Any], Option(doc="nothing", default={})]
    degrees: Annotated[int, Option(doc="how hot", default=180, ge=50, le=250)]
    minutes: Annotated[
        int,
        Option(
            doc="how long",
            auto=Auto(lambda known: known.degrees * known.training_rows, "by heat"),
            overrule=Overrule(lambda value, known: min(value, 900), "no cake bears more"),
            ge=1,
            conflicts=(lambda oven, at: "It burns." if oven.degrees > 200 and at.processes > 1 else None,),
        ),
    ]


Wanted: Any = asked_of(Oven, "Wanted", "What a cook asks for.")


def test_what_is_left_out_has_its_default_or_is_auto() -> None:
    assert dict(Wanted()) == {"chat_template_kwargs": {}, "degrees": 180, "minutes": AUTO}


@pytest.mark.parametrize("wrong", [{"degrees": 49}, {"degrees": 251}, {"degrees": AUTO}, {"minutes": 0}, {"salt": 1}])
def test_what_is_not_declared_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Wanted(**wrong)


def test_auto_is_decided_by_what_is_declared_above() -> None:
    assert resolve(Wanted(degrees=100), training_rows=2) == Oven(chat_template_kwargs={}, degrees=100, minutes=200)


def test_what_is_overruled_is_told_where_it_was_asked_for() -> None:
    asked = Wanted(minutes=1000)
    assert overruled(asked, resolve(asked, training_rows=1)) == ["minutes is 900 and not 1000: no cake bears more"]
    for quiet in (Wanted(), Wanted(minutes=AUTO), Wanted(minutes=900)):
        assert overruled(quiet, resolve(quiet, training_rows=100)) == []


def test_a_conflict_names_its_own_setting() -> None:
    hot = resolve(Wanted(degrees=210), training_rows=1)
    assert conflicts(hot, Installation(processes=2)) == [("minutes", "It burns.")]
    assert conflicts(hot) == []


def test_a_default_and_a_rule_at_once_are_a_mistake() -> None:
    with pytest.raises(TypeError, match="a default or is auto"):
        Option(doc="both", default=1, auto=Auto(1))
    with pytest.raises(TypeError, match="a default or is auto"):
        Option(doc="neither")


def test_a_field_without_a_declaration_is_a_mistake() -> None:
    class Bare(Frozen):
        degrees: int

    with pytest.raises(TypeError, match=r"Bare\.degrees needs one Option, and has 0"):
        options(Bare)


@pytest.mark.parametrize("kind", [kind for _, kind in KINDS])
def test_stored_hyperparameters_have_no_default(kind: type[Frozen]) -> None:
    assert [name for name, info in kind.model_fields.items() if not info.is_required()] == []


@pytest.mark.parametrize(("asked", "name"), BOUNDED)
def test_bounds_are_those_of_requests_and_not_of_what_is_stored(asked: type[Asked[Any]], name: str) -> None:
    bounds = options(asked.resolved)[name].bounds
    beyond = [*(bounds[each] - 1 for each in ("ge", "gt") if each in bounds)]
    beyond += [bounds[each] + 1 for each in ("le", "lt") if each in bounds]
    plain = resolve(asked(), training_rows=8).model_dump()
    assert len(beyond) == 2
    for value in beyond:
        with pytest.raises(ValidationError):
            asked(**{name: value})
        assert getattr(asked.resolved.model_validate(plain | {name: value}), name) == value


@pytest.mark.parametrize(("asked", "kind"), KINDS)
def test_the_line_of_documentation_is_in_the_schema_of_both(asked: type[Frozen], kind: type[Frozen]) -> None:
    for model in (asked, kind):
        properties = model.model_json_schema()["properties"]
        for name, option in options(kind).items():
            assert properties[name]["description"].endswith(option.doc), name
