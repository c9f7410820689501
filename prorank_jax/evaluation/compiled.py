"""ranx, with what numba compiles for it kept in the package's cache folder.

ranx's functions are compiled on first use, for 10 to 60 seconds. numba keeps the result beside ranx's own files and,
where those cannot be written, may refuse to import ranx at all. Here the compiled functions lie in `numba` in the cache
folder, unless `NUMBA_CACHE_DIR` says otherwise, and an evaluation also works where nothing can be kept.
"""

import contextlib
import functools
import importlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from prorank_jax.cache import VARIABLE, cache_folder

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

# ranx's threads (numba's workqueue) end the process where two threads of Python use them at once.
_one_at_a_time = threading.RLock()


def with_ranx(compute: Callable[[ModuleType], Result]) -> Result:
    """What `compute(ranx)` returns; one call at a time in a process.

    Where a compiled function cannot be kept, because the disk is full, `compute` is called again: what numba has
    compiled stays in memory.
    """
    from numba.core.errors import NumbaTypeSafetyWarning

    with _one_at_a_time, warnings.catch_warnings():
        # Of ranx's own loops: it casts the index of a query from unsigned to signed.
        warnings.simplefilter("ignore", NumbaTypeSafetyWarning)
        ranx = _ranx()
        # Each attempt gets past at least one function; ranx has fewer than this.
        for _ in range(100):
            try:
                return compute(ranx)
            except OSError as error:
                _warn(error.strerror)
        return compute(ranx)


@functools.cache
def _ranx() -> ModuleType:
    chosen = "NUMBA_CACHE_DIR" in os.environ
    with _Later.standing_in("ir_datasets"), contextlib.nullcontext() if chosen else _kept_in(cache_folder() / "numba"):
        import ranx
    return ranx


@contextlib.contextmanager
def _kept_in(folder: Path) -> Iterator[None]:
    """What is imported meanwhile keeps its compiled functions in the folder; nowhere if it cannot be written."""
    import numba
    from numba.core.dispatcher import Dispatcher

    # Both are read when a function is decorated; functions of other libraries stay as they are.
    config: Any = numba.config
    dispatcher: Any = Dispatcher
    place, enable = config.CACHE_DIR, dispatcher.enable_caching
    try:
        _try_to_write(folder)
        config.CACHE_DIR = str(folder)
    except OSError as error:
        _warn(error.strerror)
        dispatcher.enable_caching = lambda self: None
    try:
        yield
    finally:
        config.CACHE_DIR, dispatcher.enable_caching = place, enable


def _try_to_write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f"{os.getpid()}.tmp"
    try:
        probe.write_bytes(bytes(4096))
    finally:
        probe.unlink(missing_ok=True)


class _Later(ModuleType):
    """A module that is imported when something in it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)

    @classmethod
    @contextlib.contextmanager
    def standing_in(cls, name: str) -> Iterator[None]:
        """What is imported meanwhile gets the module in this form.

        ranx needs ir_datasets for downloads alone, and that makes a folder in the user's home when it is imported.
        """
        if name in sys.modules:
            yield
            return
        sys.modules[name] = cls(name)
        try:
            yield
        finally:
            del sys.modules[name]


@functools.cache
def _warn(reason: str | None) -> None:
    # Kept calls make it one line a reason.
    _log.warning(
        "%s: compiled measures cannot be kept (%s) and are compiled in every process; "
        "set %s to a folder that can be written",
        cache_folder(),
        reason,
        VARIABLE,
    )
