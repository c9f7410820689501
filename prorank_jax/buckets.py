"""Google Cloud Storage through gcsfs, from the extra `gcs`: `gs://BUCKET/...` as a file system, with our errors."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

from prorank_jax.cache import VARIABLE, cache_folder
from prorank_jax.errors import InputError

SCHEME = "gs://"
_GLOB = frozenset("*?[")
_ANSWER_SECONDS = 10.0
_GUARDS: list[tuple[str, Callable[[], None]]] = []
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
    """Raises InputError where the bucket does not do what is asked of it, or this machine has no room for copies.

    In a folder that is `guarded`, its check comes first.
    """
    for folder, check in list(_GUARDS):
        if f"{name_of(place)}/".startswith(f"{folder}/"):
            check()
    with _explained(place):
        yield


@contextmanager
def guarded(folder: str | os.PathLike[str], check: Callable[[], None]) -> Iterator[None]:
    """Calls `check` before each operation of this process in a folder of a bucket; what it raises prevents that."""
    guard = name_of(folder), check
    _GUARDS.append(guard)
    try:
        yield
    finally:
        _GUARDS.remove(guard)


@contextmanager
def _explained(place: str | os.PathLike[str]) -> Iterator[None]:
    import aiohttp
    from gcsfs.retry import HttpError
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (OSError, HttpError, GoogleAPIError, GoogleAuthError, aiohttp.ClientError) as error:
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


class Version(NamedTuple):
    """An object as it was at some time."""

    content: bytes
    generation: int


class ConditionalObject:
    """An object that is written and deleted only where it still is what it was, as the bucket itself decides.

    By Google's own client, which gcsfs is made of: gcsfs knows no condition but "there is none". A request is repeated
    for some seconds; one that succeeded without an answer then looks as if it was refused.

    Raises:
      InputError: in all methods, where the bucket does not do what is asked of it.
    """

    def __init__(self, place: str | os.PathLike[str]):
        from google.cloud import storage
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._place = place
        self._asked: dict[str, Any] = {"timeout": _ANSWER_SECONDS, "retry": DEFAULT_RETRY.with_timeout(_ANSWER_SECONDS)}
        bucket, _, self._name = name_of(place).partition("/")
        with _explained(place):
            credentials = files_of(place).credentials.credentials
            self._bucket = storage.Client(project=None, credentials=credentials).bucket(bucket)

    def read(self) -> Version | None:
        """What it is now; None where there is none."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with _explained(self._place):
            while (blob := self._bucket.get_blob(self._name, **self._asked)) is not None:
                try:
                    content = blob.download_as_bytes(if_generation_match=blob.generation, **self._asked)
                    return Version(content, int(blob.generation))
                except (NotFound, PreconditionFailed):
                    # It was written anew in between.
                    continue
        return None

    def write(self, content: bytes, generation: int) -> int | None:
        """Writes it where its generation is this one, or 0 and there is none; its new generation, or None."""
        from google.api_core.exceptions import PreconditionFailed

        blob = self._bucket.blob(self._name)
        with _explained(self._place):
            try:
                blob.upload_from_string(content, if_generation_match=generation, **self._asked)
            except PreconditionFailed:
                return None
        return int(blob.generation)

    def delete(self, generation: int) -> bool:
        """Deletes it where its generation is this one; whether that was so."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with _explained(self._place):
            try:
                self._bucket.blob(self._name).delete(if_generation_match=generation, **self._asked)
            except (NotFound, PreconditionFailed):
                return False
        return True
