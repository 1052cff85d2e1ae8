"""Signing secrets, in the form of the Standard Webhooks: ``whsec_`` and Base64.

A secret is HMAC-SHA256 of the endpoint's id and salt under the webhook key, which the API and the control worker know.
So nothing in the database can sign for an endpoint, and a new salt is a new secret.
"""

import base64
import hashlib
import hmac

from service.settings import required

PREFIX = "whsec_"
PURPOSE = b"webhook signing secrets"


def derive(endpoint_id: str, salt: str) -> bytes:
    """The 32 bytes that sign for an endpoint."""
    key = bytes.fromhex(required("webhook_key"))
    return hmac.digest(key, f"{endpoint_id}.{salt}".encode(), hashlib.sha256)


def key_of(pepper: str) -> str:
    """The webhook key that follows from a pepper, for deployments that need no further secret."""
    return hmac.digest(pepper.encode(), PURPOSE, hashlib.sha256).hex()


def shown(endpoint_id: str, salt: str) -> str:
    """The secret as its owner gets it, once."""
    return PREFIX + base64.b64encode(derive(endpoint_id, salt)).decode()


def hint(endpoint_id: str, salt: str) -> str:
    return f"{PREFIX}…{shown(endpoint_id, salt)[-5:]}"
