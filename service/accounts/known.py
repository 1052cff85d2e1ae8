"""The keys that this process has lately found to be right, and whose they are.

What is found here was true a moment ago: it says on whose turn a request is begun, and spares a question of the
database where the request's own transaction asks it anyway.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from service.accounts import keys
from service.accounts.scopes import Scope
from service.audit.repository import Actor
from service.core.db import EVERY_PROJECT

KEYS_REMEMBERED = 10_000


@dataclass(frozen=True)
class Asked:
    """The request at hand: what it is, of which scopes it needs one, and where it comes from."""

    what: str = "this"
    needs: frozenset[Scope] = frozenset()
    address: str | None = None


@dataclass(frozen=True)
class Principal:
    """On whose behalf a request is made. ``project_id`` is ``EVERY_PROJECT`` for a key that is of no project."""

    organization_id: str
    organization_name: str
    project_id: str
    key_id: str
    key_hash: str = field(repr=False)
    scopes: frozenset[Scope] = frozenset()
    user_id: str | None = None
    user_email: str | None = None
    service_account_id: str | None = None
    role: str | None = None
    """That of the user or service account who owns the key; None where nobody does."""
    asked: Asked = Asked()

    @property
    def is_admin(self) -> bool:
        return self.project_id == EVERY_PROJECT

    def actor(self) -> Actor:
        """As the audit log names it."""
        key: dict[str, object] = {"id": self.key_id}
        if self.user_id is not None:
            key |= {"type": "user", "user": {"id": self.user_id, "email": self.user_email}}
        if self.service_account_id is not None:
            key |= {"type": "service_account", "service_account": {"id": self.service_account_id}}
        owner = self.user_id or self.service_account_id or self.key_id
        return Actor({"type": "api_key", "api_key": key}, owner, self.user_email, self.asked.address)


_principals: OrderedDict[str, Principal] = OrderedDict()
_lock = threading.Lock()


def principal(key: str) -> Principal | None:
    """Whose ``key`` was when it was last used here."""
    return _principals.get(keys.hashed(key))


def is_known(key: str) -> bool:
    return principal(key) is not None


def remember(found: Principal) -> None:
    with _lock:
        _principals[found.key_hash] = found
        _principals.move_to_end(found.key_hash)
        if len(_principals) > KEYS_REMEMBERED:
            _principals.popitem(last=False)


def forget(key_hash: str) -> None:
    with _lock:
        _principals.pop(key_hash, None)
