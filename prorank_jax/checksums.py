"""Folders that know their own bytes: a file of checksums, written last, says what a whole one holds.

The file is md5sum's own, so `cd FOLDER && md5sum -c checksums.md5` checks it as well. MD5, because that is what
buckets tell of their objects without reading them; it finds what disks and networks do, not what a forger does.
"""

import os

from prorank_jax.errors import InputError
from prorank_jax.storage import Place, digests, read_bytes, write_text

CHECKSUMS = "checksums.md5"


def seal(folder: Place) -> None:
    """Writes the checksums of all files in a folder.

    Raises:
      InputError: the bucket cannot be read or written.
      OSError: this machine cannot.
    """
    write_text(folder / CHECKSUMS, _text(digests(folder)))


def damage(folder: Place) -> str | None:
    """What is wrong with a sealed folder, in a few words; None where its bytes are those that were sealed.

    Raises:
      InputError: it cannot be read.
    """
    try:
        found, sealed = digests(folder), read_bytes(folder / CHECKSUMS)
    except OSError as error:
        raise InputError(f"{os.fspath(folder)}: cannot be read ({error.strerror or error}); see to its disk") from None
    if sealed is None:
        return f"no {CHECKSUMS}: it was not finished, or an older version wrote it"
    found.pop(CHECKSUMS, None)
    if sealed == _text(found).encode():
        return None
    lines = [line.partition("  ") for line in sealed.decode(errors="replace").splitlines()]
    listed = {path: digest for digest, _, path in lines}
    if missing := sorted(listed.keys() - found.keys()):
        return f"{missing[0]!r} is missing"
    changed = [path for path, digest in sorted(listed.items()) if found[path] != digest]
    return f"{(changed or [CHECKSUMS])[0]!r} does not hold the bytes that were written"


def _text(found: dict[str, str]) -> str:
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(found.items()) if path != CHECKSUMS)
