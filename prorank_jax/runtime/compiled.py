"""Compiled programs kept for the next process, in the package's cache folder."""

import jax

from prorank_jax.cache import cache_folder


def keep_compiled() -> None:
    """JAX keeps what it compiles from now on, and takes what an earlier process kept.

    Where a folder was chosen before (`JAX_COMPILATION_CACHE_DIR`), or keeping was turned off, nothing changes.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        # Small programs too: compiling one takes longer than reading it.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
