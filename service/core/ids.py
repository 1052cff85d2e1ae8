"""Opaque identifiers with the prefixes of OpenAI's API."""

import re
import secrets
import string

ALPHABET = string.digits + string.ascii_letters
LENGTH = 24
_SAFE = re.compile(r"[A-Za-z0-9_-]{1,255}")


def new_id(prefix: str, length: int = LENGTH) -> str:
    """A random identifier such as ``file-4kVd…`` with ``length`` base-62 digits (24 of them carry 142 bits)."""
    return prefix + random_text(length)


def random_text(length: int) -> str:
    number, digits = secrets.randbelow(len(ALPHABET) ** length), ""
    for _ in range(length):
        number, rest = divmod(number, len(ALPHABET))
        digits += ALPHABET[rest]
    return digits


def is_id(text: str, prefix: str) -> bool:
    """Whether ``text`` is what ``new_id(prefix)`` makes."""
    digits = text.removeprefix(prefix)
    return text.startswith(prefix) and len(digits) == LENGTH and all(digit in ALPHABET for digit in digits)


def is_safe(id: str) -> bool:
    """Whether ``id`` can be part of a path: no separators, no dots."""
    return _SAFE.fullmatch(id) is not None
