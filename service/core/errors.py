"""The one way to fail: an error that owns its HTTP status and becomes OpenAI's error envelope."""

from typing import Any

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class DomainError(Exception):
    """A request that cannot be served. ``param`` names the offending field, with dots into nested ones."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = headers or {}


def envelope(status: int, code: str | None, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of every answer that is not a success."""
    # OpenAI's type of what no waiting mends, and of no other 429.
    if code == "insufficient_quota":
        return {"error": {"message": message, "type": code, "param": param, "code": code}}
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def invalid(message: str, param: str | None, code: str = "invalid_value") -> DomainError:
    return DomainError(400, code, message, param)


def not_found(what: str, id: str, param: str | None = None) -> DomainError:
    """Also the answer for another organisation's rows, so that ids cannot be probed."""
    return DomainError(404, f"{what.replace(' ', '_')}_not_found", f"No such {what}: '{id}'.", param)
