"""Compiled programs kept for the next process, in the package's cache folder."""

import logging
import tempfile
import time
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from prorank_jax.cache import VARIABLE, cache_folder

_log = logging.getLogger(__name__)

MOST_BYTES = 2 << 30
"""Of all programs: those used last are kept. A small model's programs take some hundred kilobytes each on a CPU."""
_SECONDS_OF_A_WRITE = 60.0


def keep_compiled() -> None:
    """From now on JAX keeps what it compiles, 2 GiB at most, and takes what earlier processes kept.

    The command line calls this before it loads a model; a program that wants it calls it once, at any time. It changes
    JAX's configuration, for whatever else the process compiles too. Where a folder was chosen before
    (`JAX_COMPILATION_CACHE_DIR`), nothing changes.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        _log.warning(
            "%s: compiled programs cannot be kept (%s) and are compiled in every process; set %s to a folder that can "
            "be written",
            folder,
            error.strerror,
            VARIABLE,
        )
        return
    _forget_unfinished(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    # Small programs too: compiling one takes longer than reading it.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # JAX decides with the first program whether it keeps any.
    compilation_cache.reset_cache()


def _forget_unfinished(folder: Path) -> None:
    """Deletes programs without a time of use, as a killed process leaves them: with one of them JAX keeps no other."""
    for program in folder.glob("*-cache"):
        used = program.with_name(f"{program.name.removesuffix('-cache')}-atime")
        try:
            if not used.exists() and time.time() - program.stat().st_mtime > _SECONDS_OF_A_WRITE:
                program.unlink()
        except FileNotFoundError:
            continue  # another process was faster
