"""Where the signing secrets of webhooks come from."""

from service.webhooks import secret


def test_the_webhook_key_of_a_pepper_is_what_the_operators_guide_computes() -> None:
    """``printf %s "webhook signing secrets" | openssl dgst -sha256 -hmac pepper``, as in docs/operations.md."""
    assert secret.key_of("pepper") == "27c4dce4c04621e0ac3a578293e54a9529201c7978675f663308c4eb6b4108c5"
