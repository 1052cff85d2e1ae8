"""A hub's token on its way from the request to the worker that uses it: only they can read it.

It is encrypted with a key that follows from the webhook key, which the API and the control worker know, and belongs to
one export. It is forgotten when that has ended.
"""

import base64
import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.settings import required

PURPOSE = b"tokens of hubs"
NONCE_BYTES = 12


class UnreadableTokenError(Exception):
    """It was sealed with another key, or for another export."""


def seal(export_id: str, token: str) -> str:
    nonce = os.urandom(NONCE_BYTES)
    sealed = _cipher().encrypt(nonce, token.encode(), export_id.encode())
    return base64.b64encode(nonce + sealed).decode()


def unseal(export_id: str, sealed: str) -> str:
    """Raises ``UnreadableTokenError``."""
    raw = base64.b64decode(sealed)
    try:
        return _cipher().decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], export_id.encode()).decode()
    except InvalidTag as error:
        raise UnreadableTokenError from error


def _cipher() -> AESGCM:
    key = bytes.fromhex(required("webhook_key"))
    return AESGCM(hmac.digest(key, PURPOSE, hashlib.sha256))
