"""The folder for what can be made or downloaded again: prepared collections, downloads, BM25 indexes, candidates."""

import os
from pathlib import Path

VARIABLE = "PRORANK_CACHE"


def cache_folder() -> Path:
    """`$PRORANK_CACHE`; where that is not set, `prorank_jax` in `$XDG_CACHE_HOME` or in `~/.cache`.

    The folder need not exist: who writes makes it.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "prorank_jax"
