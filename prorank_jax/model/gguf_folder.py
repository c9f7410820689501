"""A GGUF file as a model folder: written once, and read from there like any other."""

import hashlib
from pathlib import Path

from prorank_jax.atomic import alone, writing
from prorank_jax.cache import VARIABLE, cache_folder
from prorank_jax.errors import InputError
from prorank_jax.model.families import decoder_config
from prorank_jax.model.gguf import GgufFile, GgufWeights, parts
from prorank_jax.model.gguf_tokenizer import read_tokenizer
from prorank_jax.model.weights import write_folder
from prorank_jax.progress import tell
from prorank_jax.storage import Place, fetched, holds_files, replaced

_LAST = "config.json"


def import_gguf(source: str | Path, out: Place) -> None:
    """Writes a model folder of Hugging Face's format: float32 weights, configuration, tokenizer, chat template.

    Args:
      source: a GGUF file, or the first part of a split one; here or in a bucket.

    Raises:
      InputError: the file is damaged or not supported; there is something at `out`, or it cannot be written.
    """
    if holds_files(out):
        raise InputError(f"{out}: there already; give another folder")
    file = GgufFile(Path(fetched(source)))
    with writing(out, "make room for it, or give another folder"), replaced(out, _LAST) as unfinished:
        _write(file, unfinished)


def folder_of(source: Path) -> Path:
    """The model folder of a GGUF file, in the cache; the same bytes are written once.

    Raises:
      InputError: as `import_gguf`.
    """
    digest = hashlib.sha256()
    for part in parts(source):
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    folders = cache_folder() / "gguf"
    folder = folders / digest.hexdigest()[:32]
    with writing(folders, f"make room for it, or set {VARIABLE} to another folder"):
        folders.mkdir(parents=True, exist_ok=True)
        with alone(folders, f"reading {source.name}"):
            if not (folder / _LAST).is_file():
                tell(f"prorank: {source}: written once as a model folder to {folder}")
                with replaced(folder, _LAST) as unfinished:
                    _write(GgufFile(source), unfinished)
    return folder


def _write(file: GgufFile, folder: Path) -> None:
    config = file.config()
    weights = GgufWeights(file, decoder_config(config, str(file.path)))
    tokenizer = read_tokenizer(file)
    write_folder(folder, config | {"dtype": "float32"}, weights.sizes, weights.read)
    tokenizer.save_pretrained(folder)
