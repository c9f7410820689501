"""What the server answers when it does not give scores: one JSON form, one line that says why and what to do.

{"error": {"message": "documents: 1200 are more than 1000; send fewer at a time", "type": "invalid_request_error"}}
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}
_QUERIES = ("queries", "data_1", "inputs")
"""Fields of other servers for what is a query here, or several."""
_VALUE = 60
"""Characters of a value that a message shows."""

_log = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    message: str
    type: str


class ErrorBody(BaseModel):
    """Every answer but a good one has this form."""

    error: ErrorDetail


class Refused(Exception):
    """A request that is not answered with scores, with the status and the line that it gets instead."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Content as JSON in ASCII, so that no text is one that cannot be written.

    Raises:
      ValueError: a number is not finite.
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(text, status, headers, "application/json")


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return json_response({"error": {"message": message, "type": TYPES[status]}}, status, headers)


def install(app: FastAPI) -> None:
    """Gives every error of the application the one form."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return refusal(error.status, str(error), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refusal(422, told(error))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            message = f"{request.method} {request.url.path}: not allowed; see /openapi.json for what is"
        elif error.status_code == 404:
            message = f"{request.url.path}: there is no such page; see /openapi.json for those that there are"
        else:
            # FastAPI says 400 of a body that is neither valid nor malformed JSON but no text at all.
            return refusal(422, "body: it cannot be read as JSON; send a JSON object in UTF-8")
        return refusal(error.status_code, message, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        _log.error("%s: %s", request.url.path, error, exc_info=error)
        return refusal(500, "the server failed; its log says why")


def told(error: RequestValidationError) -> str:
    """The first thing wrong with a body, in one line: `documents.3: Input should be a valid string (5)`."""
    errors = error.errors()
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"body: not valid JSON ({first['ctx']['error']} at character {first['loc'][-1]}); send a JSON object"
    place = ".".join(str(part) for part in first["loc"][1:] if not str(part).startswith("form:"))
    if not place:
        return "body: not a JSON object; send one, with the header Content-Type: application/json"
    what = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "missing":
        value = _hint(str(first["loc"][-1]), first.get("input"))
    else:
        value = f" ({_shown(first.get('input'))})"
    more = f"; and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{place}: {what}{value}{more}"


def _hint(missing: str, given: Any) -> str:
    """What is added where a field is missing from an object."""
    if missing == "text":
        return "; text and title are read, or the fields that rank_fields names"
    others = [name for name in _QUERIES if isinstance(given, dict) and name in given]
    if missing in ("query", "text_1") and others:
        return f"; {others[0]} is not read, send one request a query"
    return ""


def _shown(value: Any) -> str:
    # The whole of a long list is not written out only to be cut.
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= _VALUE else f"{text[:_VALUE]}..."
