"""Places: files and folders on this machine, or in Google Cloud Storage as `gs://BUCKET/...`.

Models and data of a bucket are copied into the cache once, and read there. Checkpoints are written to it by Orbax.
What else a run writes is written here and copied: an object is whole or not there, and it cannot be added to.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self, TypeAlias

from etils import epath

from prorank_jax.atomic import alone, write_atomically
from prorank_jax.cache import VARIABLE, cache_folder
from prorank_jax.errors import InputError
from prorank_jax.progress import tell

Place: TypeAlias = Path | epath.Path
"""On this machine, or in a bucket."""

_SCHEME = "gs://"
_GLOB = frozenset("*?[")
_ACCESS = (
    "see that it is there and that this account may use it (gcloud auth application-default login, or a service "
    "account with the role Storage Admin)"
)
_COPIES = "buckets"
_QUIET_SECONDS = 1.0


def place(path: str | os.PathLike[str]) -> Place:
    """The place that a path or URL means.

    Raises:
      InputError: a URL of something else than a bucket, or the package for buckets is not installed.
    """
    url = os.fspath(path)
    if not in_bucket(path):
        if "://" in url:
            raise InputError(f"{url}: not known; give a path, or {_SCHEME}BUCKET/FOLDER")
        return Path(path)
    if not _name(url).partition("/")[2].strip("/"):
        raise InputError(f"{url}: is a whole bucket; give a folder in it, as {_SCHEME}BUCKET/FOLDER")
    _check_installed(url)
    return epath.Path(url)


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a place, or what would be one, lies in a bucket."""
    return os.fspath(path).startswith(_SCHEME)


def absolute(place: Place) -> Place:
    """The same place wherever the working directory is."""
    return place if in_bucket(place) else place.absolute()


def local(path: str | os.PathLike[str], name: str) -> Path:
    """A path of this machine.

    Raises:
      InputError: it is a URL; `name` is what the path was given for.
    """
    if "://" in os.fspath(path):
        raise InputError(f"{name}={os.fspath(path)}: is written on this machine only; give a path, and copy it then")
    return Path(path)


def exists(place: Place) -> bool:
    """Whether there is a file.

    Raises:
      InputError: its bucket cannot be reached.
    """
    if not in_bucket(place):
        return place.exists()
    with _reaching(place):
        files, name = _files(place), _name(place)
        files.invalidate_cache()
        if files.exists(name):
            return True
        # What is in a bucket that is missing or closed is not there either.
        files.info(name.partition("/")[0])
        return False


def holds_files(place: Place) -> bool:
    """Whether there is a file, or a folder with something in it; raises as `exists`."""
    if isinstance(place, Path):
        return place.is_file() or (place.is_dir() and any(place.iterdir()))
    with _reaching(place):
        return bool(_objects(_files(place), _name(place)))


def write_text(place: Place, text: str) -> None:
    """Writes a text file that is whole or not there, and makes its folder if need be.

    Raises:
      InputError: the bucket cannot be written.
      OSError: this machine cannot.
    """
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(place, text)
    with _reaching(place):
        _files(place).pipe_file(_name(place), text.encode("utf-8"))


def fetched(source: str | Place, patterns: Sequence[str] = ("*",)) -> str | Path:
    """The same; of what lies in a bucket, a copy in the cache.

    An object that was copied before is known again by its size and time.

    Args:
      source: a path, or the URL of a file, a folder, or a pattern of files.
      patterns: of the paths in a folder; others are not copied.

    Raises:
      InputError: there is nothing there, the bucket cannot be reached, or the cache cannot be written.
    """
    if not in_bucket(source):
        return source if isinstance(source, str) else Path(source)
    url = os.fspath(source)
    files, name = _files(url), _name(url)
    with _reaching(url):
        found = _objects(files, name)
    wanted = {entry: about for entry, about in found.items() if _matches(entry.removeprefix(f"{name}/"), patterns)}
    if not wanted:
        raise InputError(f"{url}: no such file or folder in the bucket; {_ACCESS}")
    with _reaching(url):
        copies = cache_folder() / _COPIES
        copies.mkdir(parents=True, exist_ok=True)
        with alone(copies):
            _fetch(files, url, wanted, copies)
            _forget(copies / name, {copies / entry for entry in wanted}, patterns)
    return copy_of(url)


def copy_of(place: str | os.PathLike[str]) -> Path:
    """Where `fetched` puts what lies in a bucket; of what lies on this machine, its path."""
    return cache_folder() / _COPIES / _safe(_name(place)) if in_bucket(place) else Path(place)


def kept_here(folder: Place) -> Path:
    """The same; for a folder in a bucket, one in the cache, for what each machine makes for itself."""
    return folder if isinstance(folder, Path) else cache_folder() / "runs" / _safe(_name(folder))


class Mirror:
    """A folder that this process alone writes, in `here`; a context manager.

    On this machine that is the folder itself. Of a bucket it is a copy, at first of what the bucket holds; what is
    changed in it goes there with `publish`, and at the end of the block.

    Args:
      without: folders in it that are others' to read and write.
    """

    def __init__(self, folder: Place, without: Sequence[str] = ()):
        self._folder, self._last = folder, time.monotonic()
        if isinstance(folder, Path):
            self.here = folder
            return
        cache_folder().mkdir(parents=True, exist_ok=True)
        self._copy = tempfile.TemporaryDirectory(dir=cache_folder(), prefix="mirror-", ignore_cleanup_errors=True)
        self.here = Path(self._copy.name)
        with _reaching(folder):
            files, name = _files(folder), _name(folder)
            paths = {entry: _safe(entry.removeprefix(f"{name}/")) for entry in _objects(files, name)}
            wanted = {entry: self.here / path for entry, path in paths.items() if path.parts[0] not in without}
            files.get(list(wanted), list(map(str, wanted.values())))
        self._sent = self._state()

    def publish(self, every: float = 0.0) -> None:
        """Copies what has changed, unless that was done less than `every` seconds ago.

        Raises:
          InputError: the bucket cannot be written.
        """
        if isinstance(self._folder, Path) or time.monotonic() - self._last < every:
            return
        files, name, state = _files(self._folder), _name(self._folder), self._state()
        with _reaching(self._folder):
            # In the order in which they were written: what says that a folder is whole comes last.
            for path in sorted(state, key=lambda path: state[path][1]):
                if state[path] != self._sent.get(path):
                    # Of a file that grows, what there is now.
                    files.pipe_file(f"{name}/{path}", (self.here / path).read_bytes())
            for path in self._sent.keys() - state.keys():
                files.rm_file(f"{name}/{path}")
        self._sent, self._last = state, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._folder, Path):
            return
        try:
            self.publish()
        finally:
            self._copy.cleanup()

    def _state(self) -> dict[str, tuple[int, int]]:
        """Size and time of each file."""
        found = {path: path.stat() for path in sorted(self.here.rglob("*")) if path.is_file()}
        return {path.relative_to(self.here).as_posix(): (s.st_size, s.st_mtime_ns) for path, s in found.items()}


@contextmanager
def replaced(folder: Place, last: str) -> Iterator[Path]:
    """An empty folder, which takes the place of `folder` at the end of the block; as if there were none in between.

    Args:
      last: the file without which the folder is nothing: in a bucket, where files come one by one, the first to go
        and the last to come.
    """
    if isinstance(folder, Path):
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        return
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="unfinished-") as made:
        yield Path(made)
        paths = [path.relative_to(made).as_posix() for path in sorted(Path(made).rglob("*")) if path.is_file()]
        files, name = _files(folder), _name(folder)
        with _reaching(folder):
            for old in sorted(_objects(files, name), key=lambda entry: entry != f"{name}/{last}"):
                files.rm_file(old)
            for path in sorted(paths, key=lambda path: path == last):
                files.put_file(str(Path(made, path)), f"{name}/{path}")


def _files(place: str | os.PathLike[str]) -> Any:
    """The file system of the buckets."""
    _check_installed(os.fspath(place))
    import fsspec

    return fsspec.filesystem("gcs")


def _check_installed(url: str) -> None:
    if find_spec("gcsfs") is None:
        raise InputError(f"{url}: buckets take another package; pip install 'prorank_jax[gcs]'")


def _name(place: str | os.PathLike[str]) -> str:
    return os.fspath(place).removeprefix(_SCHEME).rstrip("/")


@contextmanager
def _reaching(place: str | os.PathLike[str]) -> Iterator[None]:
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
        raise InputError(f"{os.fspath(place)}: the bucket refuses ({reason}); {_ACCESS}") from None


def _objects(files: Any, name: str) -> dict[str, dict[str, Any]]:
    """What is known of the object of a name, of those in the folder of a name, or of those that a pattern means."""
    files.invalidate_cache()
    found = files.glob(name, detail=True) if _GLOB & set(name) else files.find(name, detail=True)
    # What the web console makes for an empty folder is an object too.
    return {entry: about for entry, about in found.items() if about["type"] == "file" and not entry.endswith("/")}


def _fetch(files: Any, url: str, wanted: dict[str, Any], copies: Path) -> None:
    started = time.monotonic()
    missing: dict[str, tuple[Path, int]] = {}
    for entry, about in wanted.items():
        # In whole milliseconds, as Google tells them.
        changed = int(about["mtime"].timestamp() * 1000) * 1_000_000
        copy = copies / _safe(entry)
        if not copy.is_file() or (copy.stat().st_size, copy.stat().st_mtime_ns) != (about["size"], changed):
            copy.parent.mkdir(parents=True, exist_ok=True)
            missing[entry] = copy, changed
    unfinished = [copy.with_name(f"{copy.name}.{os.getpid()}.tmp") for copy, _ in missing.values()]
    try:
        files.get(list(missing), list(map(str, unfinished)))
        for made, (copy, changed) in zip(unfinished, missing.values(), strict=True):
            os.utime(made, ns=(changed, changed))
            os.replace(made, copy)
    finally:
        for made in unfinished:
            made.unlink(missing_ok=True)
    if (seconds := time.monotonic() - started) > _QUIET_SECONDS:
        size = sum(wanted[entry]["size"] for entry in missing)
        tell(f"{url}: {size / 1e6:,.0f} MB copied in {seconds:.0f} s: {copies}")


def _forget(folder: Path, wanted: set[Path], patterns: Sequence[str]) -> None:
    """Removes copies of objects that are no more."""
    if folder.is_dir():
        for path in [path for path in folder.rglob("*") if path.is_file() and path not in wanted]:
            if _matches(path.relative_to(folder).as_posix(), patterns):
                path.unlink()


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def _safe(name: str) -> PurePosixPath:
    """The path of a copy, which must not lie outside of the folder of copies."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or {"..", "."} & set(name.split("/")):
        raise InputError(f"{_SCHEME}{name}: not the name of a file; rename the object")
    return path
