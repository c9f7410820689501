"""ranx, one call at a time, and also where numba cannot keep what it compiles.

ranx's functions are compiled on first use, for 10 to 60 seconds. numba keeps the result for later processes: in
`NUMBA_CACHE_DIR`, which the command line sets to the package's cache folder, or else beside ranx's own files.
"""

import functools
import logging
import threading
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

from prorank_jax.errors import InputError

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

# ranx's threads (numba's workqueue) end the process where two threads of Python use them at once.
_one_at_a_time = threading.RLock()


def with_ranx(compute: Callable[[ModuleType], Result]) -> Result:
    """What `compute(ranx)` returns; one call at a time in a process.

    Where a compiled function cannot be kept, because the disk is full, `compute` is called again: what numba has
    compiled stays in memory.

    Raises:
      InputError: ranx cannot be imported, because a folder that it needs cannot be written.
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


def _ranx() -> ModuleType:
    try:
        import ranx
    except OSError as error:
        # ir_datasets, which ranx needs for downloads alone, makes its folder when it is imported.
        raise InputError(
            f"{error.filename}: cannot be made ({error.strerror}), and ranx needs it; set IR_DATASETS_HOME to a folder "
            "that can be written"
        ) from None
    except RuntimeError as error:
        if "cannot cache function" not in str(error):
            raise
        raise InputError(
            "ranx: no folder for its compiled functions can be written; set NUMBA_CACHE_DIR to one that can"
        ) from None
    return ranx


@functools.cache
def _warn(reason: str | None) -> None:
    # Kept calls make it one line a reason.
    _log.warning(
        "compiled measures cannot be kept (%s) and are compiled in every process; set NUMBA_CACHE_DIR to a folder that "
        "can be written",
        reason,
    )
