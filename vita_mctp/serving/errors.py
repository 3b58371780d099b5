"""What a client is told when something is wrong, in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

from vita_mctp.errors import AudioError, ConfigError, VitaError


class ApiError(VitaError):
    """An answer that is an error. retry_after: seconds after which asking again makes sense."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self), self.param, self.code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def as_api_error(error: VitaError) -> ApiError:
    """An error of the library, of which what the client sent is the reason, or is not."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AudioError | ConfigError):
        return ApiError(400, str(error), code="invalid_audio" if isinstance(error, AudioError) else "invalid_value")
    return ApiError(400, str(error), code=getattr(error, "code", None))
