"""The text of an API key: ``sk-troll-``, or ``sk-troll-admin-`` for one that administers an organisation, + 40 random
base-62 digits (238 bits) + 6 digits of CRC-32.

The checksum lets a mistyped or truncated key be refused without a look-up, and lets scanners recognise a leaked one.
"""

import hashlib
import hmac
import zlib

from service.core.ids import ALPHABET, random_text
from service.settings import required

PREFIX = "sk-troll-"
ADMIN_PREFIX = "sk-troll-admin-"
RANDOM_DIGITS = 40
CHECKSUM_DIGITS = 6


def generate(prefix: str = PREFIX) -> str:
    body = random_text(RANDOM_DIGITS)
    return prefix + body + _checksum(body)


def is_well_formed(key: str) -> bool:
    prefix = _prefix(key)
    body, checksum = key[len(prefix) : -CHECKSUM_DIGITS], key[-CHECKSUM_DIGITS:]
    return key.startswith(prefix) and len(body) == RANDOM_DIGITS and key.isascii() and _checksum(body) == checksum


def bearer(authorization: str | None) -> str | None:
    """The token of a header ``Authorization``, whatever the case of its scheme and the spaces around; None without."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def presented(authorization: str | None) -> str | None:
    """The key in a header ``Authorization``; None when there is none, or it cannot be one."""
    token = bearer(authorization)
    return token if token is not None and is_well_formed(token) else None


def hint(key: str) -> str:
    return f"{key[: len(_prefix(key)) + 4]}…{key[-4:]}"


def hashed(key: str) -> str:
    """HMAC-SHA256 under the pepper, in hexadecimal. The key's entropy makes a slow hash unnecessary."""
    return hmac.new(required("key_pepper").encode(), key.encode(), hashlib.sha256).hexdigest()


def _prefix(key: str) -> str:
    return ADMIN_PREFIX if key.startswith(ADMIN_PREFIX) else PREFIX


def _checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(CHECKSUM_DIGITS):
        number, rest = divmod(number, len(ALPHABET))
        digits = ALPHABET[rest] + digits
    return digits
