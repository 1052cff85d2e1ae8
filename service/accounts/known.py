"""The keys that this process has lately found to be right, and whose they are.

What is found here was true a moment ago: it says on whose turn a request is begun, and spares a question of the
database where the request's own transaction asks it anyway.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from service.accounts import keys

KEYS_REMEMBERED = 10_000


@dataclass(frozen=True)
class Principal:
    """On whose behalf a request is made."""

    organization_id: str
    organization_name: str
    key_id: str
    key_hash: str = field(repr=False)


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
