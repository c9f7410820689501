"""Who may ask: holders of the key in the environment, where there is one."""

import hmac
import os

from starlette.types import ASGIApp, Receive, Scope, Send

from prorank_jax.errors import InputError
from prorank_jax.serving.refusals import refusal

VARIABLE = "PRORANK_API_KEY"
OPEN = frozenset({"/health", "/info", "/v1/models"})
"""What balancers and clients ask before they send a key: whether the server is ready, and its model and limits."""


def key_of_environment() -> str | None:
    """The key that requests must carry, or None.

    Raises:
      InputError: it is empty, or nothing that a header can hold.
    """
    key = os.environ.get(VARIABLE)
    if key is None:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{VARIABLE}: the key is empty or not of printable ASCII without spaces; set another")
    return key


class KeyRequired:
    """Refuses requests without `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._key = key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or self._carried(scope):
            await self._app(scope, receive, send)
            return
        message = "the API key is missing or wrong; send the header Authorization: Bearer KEY"
        await refusal(401, message, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _carried(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        # The time of the comparison does not tell how much of the key is right.
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)
