"""Model folders whose JSON begins with UTF-8's byte-order mark, as some editors write it: transformers reads none."""

import codecs
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz")


@contextmanager
def without_marks(folder: Path) -> Iterator[Path]:
    """The folder; where a file has a mark, a temporary copy without marks and weights instead."""
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix not in _WEIGHTS]
    marked = {path for path in files if path.suffix == ".json" and _has_mark(path)}
    if not marked:
        yield folder
        return
    with TemporaryDirectory() as copy:
        for path in files:
            if path in marked:
                (Path(copy) / path.name).write_bytes(path.read_bytes().removeprefix(codecs.BOM_UTF8))
            else:
                shutil.copyfile(path, Path(copy) / path.name)
        yield Path(copy)


def _has_mark(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
