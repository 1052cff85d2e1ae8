"""Signatures of requests to servers that users name."""

import base64
import hashlib
import hmac

from workers.network.requests import signature


def test_a_signature_is_that_of_the_standards_own_example() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_signature_is_of_the_bytes_that_are_sent_whatever_their_language() -> None:
    body = '{"text": "größer \u2028 日本語 😀"}'.encode()
    digest = hmac.digest(b"secret", b"msg_1.1700000000." + body, hashlib.sha256)
    assert (
        signature(b"secret", "msg_1", 1700000000, body)["webhook-signature"]
        == f"v1,{base64.b64encode(digest).decode()}"
    )
