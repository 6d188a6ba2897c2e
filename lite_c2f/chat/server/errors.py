"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}  # by status; others: the request is wrong


class ApiError(Exception):
    """A request that is not answered. param: the parameter it is about; code: as OpenAI's server names it."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the error."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The error as a response."""
        return JSONResponse(self.body, self.status, self.headers)


def unsupported(param: str, expected: str) -> ApiError:
    """The error for a parameter that would change the answer and that this server does not know."""
    return ApiError(
        400, f"'{param}' is not supported: expected {expected}; leave it out", param, "unsupported_parameter"
    )


def too_long(context: int, most: int, prompt: int, answer: int, param: str) -> ApiError:
    """The error for a prompt that leaves no room for its answer; all in tokens, most: of such a prompt."""
    message = (
        f"This model's maximum context length is {context} tokens: with {answer} for the answer a prompt may have "
        f"{max(0, most)}, and this one has {prompt}; shorten it, or lower max_tokens"
    )
    return ApiError(400, message, param, "context_length_exceeded")
