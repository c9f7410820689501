"""Google Cloud Storage through gcsfs, from the extra `gcs`: `gs://BUCKET/...` as a file system, with our errors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from prorank_jax.cache import VARIABLE, cache_folder
from prorank_jax.errors import InputError

SCHEME = "gs://"
_GLOB = frozenset("*?[")
ACCESS = (
    "see that it is there and that this account may use it (gcloud auth application-default login, or a service "
    "account with the role Storage Admin)"
)


def files_of(place: str | os.PathLike[str]) -> Any:
    """The file system of the buckets."""
    check_installed(os.fspath(place))
    import fsspec

    return fsspec.filesystem("gcs")


def check_installed(url: str) -> None:
    """Raises InputError where the extra is not installed; `url` is what was asked for."""
    if find_spec("gcsfs") is None:
        raise InputError(f"{url}: buckets take another package; pip install 'prorank_jax[gcs]'")


def name_of(place: str | os.PathLike[str]) -> str:
    """What gcsfs calls a place: `BUCKET/...`."""
    return os.fspath(place).removeprefix(SCHEME).rstrip("/")


@contextmanager
def reaching(place: str | os.PathLike[str]) -> Iterator[None]:
    """Raises InputError where the bucket does not do what is asked of it, or this machine has no room for copies."""
    import aiohttp
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (OSError, HttpError, GoogleAuthError, aiohttp.ClientError) as error:
        if isinstance(error, OSError) and error.strerror and not isinstance(error, aiohttp.ClientError):
            remedy = f"free space, or name another folder in {VARIABLE}"
            raise InputError(f"{cache_folder()}: cannot be written ({error.strerror}); {remedy}") from None
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{os.fspath(place)}: the bucket refuses ({reason}); {ACCESS}") from None


def objects(files: Any, name: str) -> dict[str, dict[str, Any]]:
    """What is known of the object of a name, of those in the folder of a name, or of those that a pattern means."""
    files.invalidate_cache()
    found = files.glob(name, detail=True) if _GLOB & set(name) else files.find(name, detail=True)
    # What the web console makes for an empty folder is an object too.
    return {entry: about for entry, about in found.items() if about["type"] == "file" and not entry.endswith("/")}
