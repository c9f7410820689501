"""The zips of BEIR, downloaded once: what broke off goes on, and what is not the published file is removed.

TFDS' own downloader begins at the first byte each time, has no time limit, and tries ten times in three minutes where
there is no network.
"""

import hashlib
import http.client
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from prorank_jax.atomic import alone
from prorank_jax.cache import VARIABLE
from prorank_jax.data.published import URL_VARIABLE, Zip
from prorank_jax.errors import InputError
from prorank_jax.progress import progress

_SECONDS_OF_SILENCE = 60.0
_BLOCK = 1 << 20
# A ValueError is of an address that is none.
_OF_NETWORK = (
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    TimeoutError,
    ConnectionError,
    ValueError,
)


def fetch(zipped: Zip, folder: Path) -> None:
    """Puts the zip into `folder`, if it is not there; of several processes one does it and the others wait.

    Raises:
      InputError: it cannot be downloaded or written, or is another file than the published one.
    """
    path = folder / f"{zipped.name}.zip"
    part = path.with_suffix(".zip.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if path.is_file():
                _check(zipped, path)
                return
            _download(zipped, part)
            _check(zipped, part)
            part.replace(path)
    except InputError:
        raise
    except _OF_NETWORK as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise _failed(zipped, error) from None
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); free space, or name another folder in {VARIABLE}"
        ) from None


def _download(zipped: Zip, part: Path) -> None:
    """Writes the rest of the zip behind what there is of it."""
    begun = part.stat().st_size if part.is_file() else 0
    if begun >= zipped.size:
        part.unlink()
        begun = 0
    request = urllib.request.Request(zipped.url, headers={"Range": f"bytes={begun}-"} if begun else {})
    with urllib.request.urlopen(request, timeout=_SECONDS_OF_SILENCE) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            begun = 0
        length = response.headers.get("Content-Length")
        if length is not None and begun + int(length) != zipped.size:
            part.unlink(missing_ok=True)
            raise InputError(
                f"{zipped.url}: has {begun + int(length)} bytes, and the published file {zipped.size}; "
                f"name a mirror in {URL_VARIABLE}"
            )
        total = zipped.size // 1_000_000
        with (
            part.open("ab" if begun else "wb") as file,
            progress(f"{zipped.url}, MB", total, shown=True, done=begun // 1_000_000) as advance,
        ):
            done = begun
            while block := response.read(_BLOCK):
                file.write(block)
                advance((done + len(block)) // 1_000_000 - done // 1_000_000)
                done += len(block)
    if done < zipped.size:
        raise ConnectionError(f"it broke off after {done} of {zipped.size} bytes")


def _check(zipped: Zip, path: Path) -> None:
    """Removes a file that is not the published one, and raises InputError."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != zipped.sha256:
        path.unlink()
        raise InputError(
            f"{zipped.url}: its SHA-256 is {found}, and that of the published file {zipped.sha256}; it is removed: "
            f"try again, or name a mirror in {URL_VARIABLE}"
        )


def _failed(zipped: Zip, error: Exception) -> InputError:
    said = error.reason if type(error) is urllib.error.URLError else error
    reason = (str(said).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"{zipped.url}: cannot be downloaded ({reason}); try again, which goes on where it broke off, name a mirror in "
        f"{URL_VARIABLE}, or give the path of the zip"
    )
