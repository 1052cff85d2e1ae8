"""Signing secrets, in the form of the Standard Webhooks: ``whsec_`` and Base64.

A secret is HMAC-SHA256 of the endpoint's id and salt under a key made of the server's pepper. So nothing in the
database can sign for an endpoint, no second key has to be kept, and a new salt is a new secret.
"""

import base64
import hashlib
import hmac

from service.settings import settings

PREFIX = "whsec_"


def derive(endpoint_id: str, salt: str) -> bytes:
    """The 32 bytes that sign for an endpoint."""
    pepper = settings().key_pepper.get_secret_value().encode()
    key = hmac.digest(pepper, b"webhook signing secrets", hashlib.sha256)
    return hmac.digest(key, f"{endpoint_id}.{salt}".encode(), hashlib.sha256)


def shown(endpoint_id: str, salt: str) -> str:
    """The secret as its owner gets it, once."""
    return PREFIX + base64.b64encode(derive(endpoint_id, salt)).decode()


def hint(endpoint_id: str, salt: str) -> str:
    return f"{PREFIX}…{shown(endpoint_id, salt)[-5:]}"
