"""What a key may do, and how a route says what it needs."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

Scope = Literal["read", "submit", "manage", "admin"]
"""read: look at what is there. submit: upload files, make and steer jobs, ask models. manage: delete, and change what
others rely on. admin: administer the organisation, which admin keys do and project keys never.
"""
PROJECT_SCOPES: tuple[Scope, ...] = get_args(Scope)[:-1]
Role = Literal["owner", "member", "reader"]
ROLES: dict[str, frozenset[Scope]] = {
    "owner": frozenset(PROJECT_SCOPES),
    "member": frozenset({"read", "submit"}),
    "reader": frozenset({"read"}),
    "none": frozenset(),
}
"""What keys of those who have a role in a project may do at most."""
ADMIN: frozenset[Scope] = frozenset({"admin"})

_ATTRIBUTE = "__needs__"
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def granted(project_id: str | None, scopes: list[Scope] | None, role: str | None) -> frozenset[Scope]:
    """What a key may do: what it was given, and no more than its owner's role allows."""
    if project_id is None:
        return ADMIN
    given = frozenset(PROJECT_SCOPES if scopes is None else scopes)
    return given if role is None else given & ROLES[role]


def needs(*scopes: Scope) -> Callable[[Endpoint], Endpoint]:
    """Marks a route's function with the scopes of which a key must have one. No route is made without."""

    def mark(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ATTRIBUTE, frozenset(scopes))
        return endpoint

    return mark


def needed_by(endpoint: Callable[..., Any]) -> frozenset[Scope]:
    """Raises a ``TypeError`` for a function that is not marked."""
    needed: frozenset[Scope] | None = getattr(endpoint, _ATTRIBUTE, None)
    if needed is None:
        raise TypeError(f"{endpoint.__module__}.{endpoint.__qualname__} does not say which scope it needs: @needs(…)")
    return needed
