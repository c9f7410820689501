"""Strict numerics, eight CPU devices and no network, for every test.

What a test starts as a subprocess inherits only what a user's machine could have: the CPU as
platform, the offline switch, and a compilation cache.
"""

import ipaddress
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

# A command that is started twice, as the resume tests do, compiles its step once.
_COMPILATION_CACHE = tempfile.TemporaryDirectory(prefix="prorank_jax-tests-", ignore_cleanup_errors=True)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", _COMPILATION_CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILATION_CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Fails a test that opens a connection to anything but this machine."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _refuse_remote(self, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_remote(self, address)
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        yield


def _refuse_remote(connection: socket.socket, address: Any) -> None:
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    host = address[0]
    if host == "localhost":
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        # Not an `Exception`, so that no library can take it for a failed download and go on.
        pytest.fail(f"the test connects to {address}; tests use no network")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with real collections and tokenizers."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        reason = f"{folder}: not there; the test needs the real collections in it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
