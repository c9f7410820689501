"""The server process: a socket, a model, uvicorn, and an end in which nothing is lost."""

import os
import signal
import socket
from pathlib import Path
from typing import NamedTuple

import uvicorn

from prorank_jax.errors import InputError
from prorank_jax.progress import tell
from prorank_jax.serving.access import VARIABLE
from prorank_jax.serving.app import Served, make_app
from prorank_jax.serving.limits import Limits


class Serving(NamedTuple):
    """How a model is served.

    Attributes:
      name: of the model, in answers.
      warm_up: whether shapes are compiled before `/health` says that the server is ready.
      graceful_timeout: seconds that requests have to end once the server is told to stop.
    """

    name: str
    limits: Limits
    api_key: str | None
    warm_up: bool
    graceful_timeout: int


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, which nobody can connect to until the server runs.

    Raises:
      InputError: it can't be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host={host}: no address of this machine ({error}); give another") from None
    try:
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise InputError(
            f"--host={host} --port={port}: cannot be listened on ({error.strerror}); give others"
        ) from None
    return bound


def serve(reranker: Served, bound: socket.socket, serving: Serving) -> None:
    """Answers requests until SIGTERM or SIGINT; then takes no more, answers those it has, and returns.

    A second SIGINT ends it at once.
    """
    app = make_app(reranker, serving.name, serving.limits, serving.api_key, warm=serving.warm_up)
    config = uvicorn.Config(
        app,
        access_log=False,
        # Not a line for everyone who sends what is no HTTP.
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=serving.graceful_timeout,
        ws="none",
    )
    host, port = bound.getsockname()[:2]
    where = f"[{host}]" if ":" in host else host
    if serving.api_key is None and not host.startswith("127.") and host != "::1":
        tell(f"prorank: anyone who reaches {where} may ask; set {VARIABLE} to a key to change that")
    tell(f"prorank: serving {serving.name} at http://{where}:{port}, pages in /docs")
    # uvicorn raises the signal that ended it once more; it has had its effect.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[bound])


def name_of(model: str) -> str:
    """What answers call a model: a folder's last parts, as `demo/export`; else the hub id."""
    folder = Path(model)
    return "/".join(folder.resolve().parts[-2:]) if folder.is_dir() else model
