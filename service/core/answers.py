"""The HTTP answer of every failure."""

from fastapi.responses import JSONResponse

from service.core.errors import envelope


def error_answer(
    status: int, code: str | None, message: str, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(envelope(status, code, message, param), status, headers=headers)
