"""The zips of BEIR, downloaded once and checked: a file that is cut short or not the published one is removed."""

import errno
import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

from prorank_jax.atomic import alone
from prorank_jax.cache import VARIABLE
from prorank_jax.data.published import URL_VARIABLE, Zip
from prorank_jax.errors import InputError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def download(zipped: Zip, dl_manager: Any) -> Path:
    """The zip, by TFDS' download manager; of several processes one downloads it and the others wait.

    Raises:
      InputError: it cannot be downloaded or written, or is another file than the published one.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    folder = Path(dl_manager.download_dir)
    with alone(folder):
        _remove_unfinished(folder)
        if not list(folder.rglob("*.zip")):
            print(f"{zipped.url}: downloading {zipped.size / 1e6:,.0f} MB", file=sys.stderr, flush=True)
        try:
            return Path(dl_manager.download(zipped.url))
        except NonMatchingChecksumError:
            found = "another"
            for file in folder.rglob("*.tmp.*/*"):
                with file.open("rb") as opened:
                    found = hashlib.file_digest(opened, "sha256").hexdigest()
            raise InputError(
                f"{zipped.url}: its SHA-256 is {found}, and that of the published file {zipped.sha256}; "
                f"try again, or name a mirror in {URL_VARIABLE}"
            ) from None
        except Exception as error:  # of requests, of TFDS and of the file system, which have no common base
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                raise InputError(
                    f"{folder}: cannot be written ({error.strerror}); free space, or name another folder in {VARIABLE}"
                ) from None
            raise InputError(
                f"{zipped.url}: cannot be downloaded ({reason}); try again, name a mirror in {URL_VARIABLE}, or give "
                "the path of the zip"
            ) from None
        finally:
            _remove_unfinished(folder)


def _remove_unfinished(folder: Path) -> None:
    for unfinished in list(folder.rglob("*.tmp.*")):
        shutil.rmtree(unfinished, ignore_errors=True)
