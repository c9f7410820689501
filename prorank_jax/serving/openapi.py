"""The OpenAPI page: what FastAPI makes of the routes, with the errors, the limits and the key in it."""

from typing import Any

from fastapi import FastAPI

from prorank_jax.serving.access import OPEN
from prorank_jax.serving.limits import MIB, Limits
from prorank_jax.serving.refusals import ErrorBody

_LISTS = {"RerankRequest": "documents", "TextsRequest": "texts", "ScoreRequest": "text_2"}
_RETRY = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


def describe_in(app: FastAPI, limits: Limits, *, secured: bool) -> None:
    """Completes the page of an application; all of its routes must be there."""
    # It is made once, and changed in place.
    page = app.openapi()
    schemas = page["components"]["schemas"]
    del schemas["HTTPValidationError"], schemas["ValidationError"]
    error = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= error.pop("$defs") | {"ErrorBody": error}
    for name, field in _LISTS.items():
        _most(schemas[name]["properties"][field], limits.documents)
    for path, methods in page["paths"].items():
        for method, operation in methods.items():
            operation["responses"] = {
                "200": operation["responses"]["200"],
                **_errors(method, path, limits, secured),
            }
            if secured and path not in OPEN:
                operation["security"] = [{"key": []}]
    page["paths"]["/metrics"]["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    if secured:
        page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}


def _most(schema: Any, most: int) -> None:
    """Sets how many entries a list may have, in a schema of a list or of one among others."""
    for one in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if one.get("type") == "array":
            one["maxItems"] = most


def _errors(method: str, path: str, limits: Limits, secured: bool) -> dict[str, Any]:
    told = {500: "The server failed; its log says why."}
    if method == "post":
        told |= {
            408: f"The body has not arrived within {limits.body_seconds:.0f} s.",
            413: f"The body has more than {limits.body_bytes / MIB:g} MiB.",
            422: f"Malformed, or more than {limits.documents} documents.",
            429: "Too much waits; try again.",
            503: "The server is stopping.",
        }
    if path == "/health":
        told[503] = "The server is warming up or stopping."
    if secured and path not in OPEN:
        told[401] = "The key is missing or wrong."
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    return {
        str(status): {"description": text, "content": content, **({"headers": _RETRY} if status == 429 else {})}
        for status, text in sorted(told.items())
    }
