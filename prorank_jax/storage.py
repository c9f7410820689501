"""Places: files and folders on this machine, or in Google Cloud Storage as `gs://BUCKET/...`.

Models and data of a bucket are copied into the cache once, and read there. Checkpoints are written to it by Orbax.
What else a run writes is written here and copied: an object is whole or not there, and it cannot be added to.
"""

import hashlib
import os
import shutil
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self, TypeAlias

from etils import epath

from prorank_jax.atomic import alone, write_atomically
from prorank_jax.buckets import ACCESS, SCHEME, check_installed, files_of, name_of, objects, reaching
from prorank_jax.cache import cache_folder
from prorank_jax.errors import InputError
from prorank_jax.progress import tell

Place: TypeAlias = Path | epath.Path
"""On this machine, or in a bucket."""

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
            raise InputError(f"{url}: not known; give a path, or {SCHEME}BUCKET/FOLDER")
        return Path(path)
    if not name_of(url).partition("/")[2].strip("/"):
        raise InputError(f"{url}: is a whole bucket; give a folder in it, as {SCHEME}BUCKET/FOLDER")
    check_installed(url)
    return epath.Path(url)


def in_bucket(path: str | os.PathLike[str]) -> bool:
    """Whether a place, or what would be one, lies in a bucket."""
    return os.fspath(path).startswith(SCHEME)


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
    with reaching(place):
        files, name = files_of(place), name_of(place)
        files.invalidate_cache()
        if files.exists(name):
            return True
        # What is in a bucket that is missing or closed is not there either.
        files.info(name.partition("/")[0])
        return False


def free_bytes(folder: Place) -> float:
    """What may still be written where a folder is; a bucket has no end."""
    return shutil.disk_usage(folder).free if isinstance(folder, Path) else float("inf")


def holds_files(place: Place) -> bool:
    """Whether there is a file, or a folder with something in it; raises as `exists`."""
    if isinstance(place, Path):
        return place.is_file() or (place.is_dir() and any(place.iterdir()))
    with reaching(place):
        return bool(objects(files_of(place), name_of(place)))


def write_text(place: Place, text: str) -> None:
    """Writes a text file that is whole or not there, and makes its folder if need be.

    Raises:
      InputError: the bucket cannot be written.
      OSError: this machine cannot.
    """
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
        return write_atomically(place, text)
    with reaching(place):
        files_of(place).pipe_file(name_of(place), text.encode("utf-8"))


def read_bytes(place: Place) -> bytes | None:
    """The bytes of a file; None where there is none.

    Raises:
      InputError: its bucket cannot be reached.
      OSError: it cannot be read.
    """
    if isinstance(place, Path):
        return place.read_bytes() if place.is_file() else None
    if not exists(place):
        return None
    with reaching(place):
        return bytes(files_of(place).cat_file(name_of(place)))


def folders(folder: Place) -> list[str]:
    """The names of the folders in a folder; none where there is no such folder.

    Raises:
      InputError: its bucket cannot be reached.
    """
    if isinstance(folder, Path):
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    with reaching(folder):
        inside = (entry.removeprefix(f"{name_of(folder)}/") for entry in objects(files_of(folder), name_of(folder)))
        return sorted({path.partition("/")[0] for path in inside if "/" in path})


def digests(folder: Place) -> dict[str, str]:
    """The MD5 of each file in a folder, by its path there. Those of a bucket are what it tells of its objects.

    Raises:
      InputError: the bucket cannot be reached.
      OSError: a file cannot be read.
    """
    if isinstance(folder, Path):
        paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        with ThreadPoolExecutor() as pool:
            return dict(zip(paths, pool.map(lambda path: _md5(folder / path), paths), strict=True))
    with reaching(folder):
        files, name = files_of(folder), name_of(folder)
        return {
            entry.removeprefix(f"{name}/"): b64decode(told).hex()
            # Of an object that was put together from others a bucket tells none.
            if (told := about.get("md5Hash"))
            else hashlib.md5(files.cat_file(entry), usedforsecurity=False).hexdigest()
            for entry, about in objects(files, name).items()
        }


def remove(folder: Place, first: str | None = None) -> None:
    """Removes a folder; `first` is the file in it without which the rest is not trusted.

    Raises:
      InputError: the bucket refuses.
    """
    if isinstance(folder, Path):
        if first is not None:
            (folder / first).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        return
    files, name = files_of(folder), name_of(folder)
    with reaching(folder):
        for entry in sorted(objects(files, name), key=lambda entry: entry != f"{name}/{first}"):
            files.rm_file(entry)


def rename(folder: Place, name: str, first: str) -> None:
    """Gives a folder another name beside the old one, and replaces what has that name; `first` is as of `remove`."""
    target = folder.with_name(name)
    remove(target)
    if isinstance(folder, Path):
        folder.rename(target)
        return
    files = files_of(folder)
    with reaching(folder):
        # Objects have no folder that could be renamed.
        for entry in objects(files, name_of(folder)):
            files.cp_file(entry, f"{name_of(target)}{entry.removeprefix(name_of(folder))}")
    remove(folder, first)


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
    files, name = files_of(url), name_of(url)
    with reaching(url):
        found = objects(files, name)
    wanted = {entry: about for entry, about in found.items() if _matches(entry.removeprefix(f"{name}/"), patterns)}
    if not wanted:
        raise InputError(f"{url}: no such file or folder in the bucket; {ACCESS}")
    with reaching(url):
        copies = cache_folder() / _COPIES
        copies.mkdir(parents=True, exist_ok=True)
        with alone(copies):
            _fetch(files, url, wanted, copies)
            _forget(copies / name, {copies / entry for entry in wanted}, patterns)
    return copy_of(url)


def copy_of(place: str | os.PathLike[str]) -> Path:
    """Where `fetched` puts what lies in a bucket; of what lies on this machine, its path."""
    return cache_folder() / _COPIES / _safe(name_of(place)) if in_bucket(place) else Path(place)


def kept_here(folder: Place) -> Path:
    """The same; for a folder in a bucket, one in the cache, for what each machine makes for itself."""
    return folder if isinstance(folder, Path) else cache_folder() / "runs" / _safe(name_of(folder))


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
        with reaching(folder):
            files, name = files_of(folder), name_of(folder)
            paths = {entry: _safe(entry.removeprefix(f"{name}/")) for entry in objects(files, name)}
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
        files, name, state = files_of(self._folder), name_of(self._folder), self._state()
        with reaching(self._folder):
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
        # Of a link, what it leads to.
        folder = folder.resolve()
        unfinished = folder.with_name(folder.name + ".unfinished")
        if unfinished.is_symlink():
            unfinished.unlink()
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        return
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="unfinished-") as made:
        yield Path(made)
        paths = [path.relative_to(made).as_posix() for path in sorted(Path(made).rglob("*")) if path.is_file()]
        files, name = files_of(folder), name_of(folder)
        with reaching(folder):
            for old in sorted(objects(files, name), key=lambda entry: entry != f"{name}/{last}"):
                files.rm_file(old)
            for path in sorted(paths, key=lambda path: path == last):
                files.put_file(str(Path(made, path)), f"{name}/{path}")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


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
        raise InputError(f"{SCHEME}{name}: not the name of a file; rename the object")
    return path
