"""What one hyperparameter is, declared once, and what follows from it.

A method's hyperparameters are a class of resolved values, as they are stored with a job and read by its trainer. The
type of each is annotated with its ``Option``: default, bounds, documentation. ``asked_of`` makes the class of what may
be asked for, ``resolve`` makes resolved values of that, ``overruled`` tells where they are not what was asked for, and
``conflicts`` what does not go together.

What is stored is not held to the bounds: they are for those who ask, and may be changed without a stored job becoming
unreadable, and a value that follows from others may lie beyond.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from service.contracts.engines import EngineName

AUTO: Literal["auto"] = "auto"


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Installation:
    """What the operator has decided."""

    rollout_engine: EngineName = "transformers"
    processes: int = 1
    """How many of them train one model."""
    tensor_parallel: int = 1
    """How many of them share one engine that can be split."""


@dataclass(frozen=True)
class Auto:
    """What ``"auto"`` becomes: ``value``, or what it gives when it is called.

    It is called with what is known by then: the hyperparameters as they were asked for, those that are declared above
    resolved already; beside them ``training_rows``, ``installation`` and ``kind``, the resolved class.
    """

    value: Any
    says: str = ""
    """The same in words, where it is not a value."""

    def of(self, known: Any) -> Any:
        return self.value(known) if callable(self.value) else self.value


@dataclass(frozen=True)
class Overrule:
    """What else may decide a value, and why: ``value(asked or default, known)`` is used, see ``Auto``."""

    value: Callable[[Any, Any], Any]
    why: str


Conflict = Callable[[Any, Installation], str | None]
"""Why a resolved hyperparameter does not go with the others or the installation, and what to do, in sentences."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A hyperparameter that is given a ``default``, or else decided by ``auto`` where nobody does."""

    doc: str
    """A line for the README and the OpenAPI document."""
    default: Any = AUTO
    auto: Auto | None = None
    overrule: Overrule | None = None
    applies_to: str = ""
    """The objective that it is an option of."""
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    allowed: str = ""
    """What may be asked for, in words, where type and bounds do not say it."""
    conflicts: tuple[Conflict, ...] = ()

    def __post_init__(self) -> None:
        if (self.default == AUTO) != (self.auto is not None):
            raise TypeError(f"a hyperparameter has a default or is auto: {self.doc}")

    @property
    def bounds(self) -> dict[str, float]:
        given = {name: getattr(self, name) for name in ("gt", "ge", "lt", "le")}
        return {name: value for name, value in given.items() if value is not None}

    def resolved(self, asked: Any, known: Any) -> Any:
        value = self.auto.of(known) if self.auto is not None and asked == AUTO else asked
        return value if self.overrule is None else self.overrule.value(value, known)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        text = f"{self.applies_to}: {self.doc}" if self.applies_to else self.doc
        return handler(schema) | {"description": text}


class ToldToTemplates(Frozen):
    """What asked for and resolved hyperparameters have in common."""

    if TYPE_CHECKING:
        # Each class declares it in its place among the others.
        chat_template_kwargs: dict[str, Any] = {}

    @property
    def effort(self) -> str | None:
        """What the chat template is told under ``reasoning_effort``, beside ``chat_template_kwargs``."""
        told = getattr(self, "reasoning_effort", "default")
        return None if told == "default" else told

    @property
    def template_values(self) -> dict[str, Any]:
        """``chat_template_kwargs`` and what else the job tells the template, whether it reads it or not."""
        effort = {} if self.effort is None else {"reasoning_effort": self.effort}
        return effort | self.chat_template_kwargs


Resolved = TypeVar("Resolved", bound=ToldToTemplates)


class Asked(ToldToTemplates, Generic[Resolved]):
    """Hyperparameters as a user gives them: any may be left out, and many may be ``"auto"``."""

    resolved: ClassVar[type[Any]]
    """What ``resolve`` makes of them."""


def options(kind: type[BaseModel]) -> dict[str, Option]:
    """The declarations of a class of resolved hyperparameters, by name."""
    found = {}
    for name, info in kind.model_fields.items():
        declared = [each for each in info.metadata if isinstance(each, Option)]
        if len(declared) != 1:
            raise TypeError(f"{kind.__name__}.{name} needs one Option, and has {len(declared)}")
        found[name] = declared[0]
    return found


def asked_of(kind: type[Resolved], name: str, doc: str) -> type[Asked[Resolved]]:
    """The class of what may be asked for, called ``name``."""
    fields: dict[str, Any] = {}
    for each, option in options(kind).items():
        type_: Any = kind.model_fields[each].annotation
        bounds: dict[str, Any] = option.bounds
        if bounds:
            type_ = Annotated[type_, Field(**bounds)]
        if option.auto is not None:
            type_ = type_ | Literal["auto"]
        fields[each] = (Annotated[type_, option], option.default)
    made = create_model(name, __base__=Asked, __module__=kind.__module__, __doc__=doc, **fields)
    made.resolved = kind
    return cast("type[Asked[Resolved]]", made)


def resolve(asked: Asked[Resolved], *, training_rows: int, installation: Installation = Installation()) -> Resolved:
    """Replace every ``"auto"``, in the order of declaration, for a training file of ``training_rows`` rows."""
    values = dict(asked)
    known = SimpleNamespace(**values, kind=asked.resolved, training_rows=training_rows, installation=installation)
    for name, option in options(asked.resolved).items():
        values[name] = option.resolved(values[name], known)
        setattr(known, name, values[name])
    resolved: Resolved = asked.resolved.model_validate(values)
    return resolved


def overruled(asked: Asked[Any], resolved: ToldToTemplates) -> list[str]:
    """What was asked for and is not what will be used, in sentences."""
    told = []
    for name, option in options(asked.resolved).items():
        given, used = getattr(asked, name), getattr(resolved, name)
        if option.overrule is not None and name in asked.model_fields_set and given not in (AUTO, used):
            told.append(f"{name} is {used:g} and not {given:g}: {option.overrule.why}")
    return told


def conflicts(resolved: ToldToTemplates, installation: Installation = Installation()) -> list[tuple[str, str]]:
    """Hyperparameters that do not go together: the name of the one to change, and why, in a sentence."""
    found = ((name, check) for name, option in options(type(resolved)).items() for check in option.conflicts)
    return [(name, why) for name, check in found if (why := check(resolved, installation)) is not None]
