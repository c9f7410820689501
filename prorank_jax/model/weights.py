"""The safetensors files of a model folder: which there are, which tensors they hold, reading these one by one, and
writing them.

Nothing is mapped into memory for longer than one tensor takes to read. Pickles are never opened.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9
ADAPTER = "adapter_config.json"
_MLX = re.compile(r"^(\d+_)?adapters\.(safetensors|npz)$")
_NOT_MERGED = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CPT")
"""Of peft's: these add tokens or keys and values, which no weight of the base model can hold."""
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


_log = logging.getLogger(__name__)


class Weights:
    """The tensors of a folder, by name."""

    def __init__(self, folder: Path):
        """Reads the files' headers.

        Raises:
          InputError: no weights, a pickle instead of them, a file that is damaged or missing, a tensor that is not
            where the index says or has a dtype that is not float32, float16 or bfloat16.
        """
        self.folder = folder
        listed = _listed_files(folder)
        self._stored: dict[str, tuple[Path, str]] = {}
        """Name -> the file, and the name there."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in sorted(set(listed.values())) if listed else [folder / WEIGHTS]:
            with _opened(file) as reader:
                for name in reader.keys():
                    if listed and listed.get(name) != file:
                        raise InputError(
                            f"{file}: {INDEX} does not say that tensor {name} is here; download the folder again"
                        )
                    tensor = reader.get_slice(name)
                    if tensor.get_dtype() not in DTYPES:
                        raise InputError(
                            f"{file}: tensor {name} is of dtype {tensor.get_dtype()}, which is not supported; use "
                            f"weights of {', '.join(DTYPES.values())}"
                        )
                    self._stored[name] = file, name
                    self.shapes[name] = tuple(tensor.get_shape())
        if missing := [name for name in listed if name not in self._stored]:
            raise InputError(
                f"{listed[missing[0]]}: holds no tensor {missing[0]}, which {INDEX} lists; download the folder again"
            )
        if adapters := _adapters(folder):
            _log.warning("%s: not read: the model is what %s holds without it", adapters[0], WEIGHTS)

    def rename(self, name_of: Callable[[str], str]) -> None:
        """Gives each tensor the name that `name_of` has for the one in its file.

        Raises:
          InputError: two tensors get one name.
        """
        stored, shapes = self._stored, self.shapes
        self._stored, self.shapes = {}, {}
        for old, place in stored.items():
            if (name := name_of(old)) in self._stored:
                file, first = self._stored[name]
                raise InputError(
                    f"{file}: tensors {first} and {old} are both {name}; take the one that is not the model's out"
                )
            self._stored[name], self.shapes[name] = place, shapes[old]

    def describe(self, name: str) -> str:
        """A tensor's file and its name there, for messages."""
        file, stored = self._stored[name]
        return f"{file}: tensor {stored}"

    def read(self, name: str) -> np.ndarray:
        """A tensor in the dtype of the file.

        Raises:
          InputError: the file is damaged, or a value is not finite.
        """
        file, stored = self._stored[name]
        with _opened(file) as reader:
            tensor: np.ndarray = reader.get_tensor(stored)
        if not np.isfinite(tensor).all():
            raise InputError(f"{self.describe(name)} holds values that are not finite; the weights are damaged")
        return tensor


def write_folder(
    folder: Path, config: Mapping[str, Any], sizes: Mapping[str, int], tensor: Callable[[str], np.ndarray]
) -> None:
    """Writes `config.json` and the tensors (sharded with an index above 5 GB) into an existing folder.

    Args:
      sizes: bytes of each tensor, by name.
      tensor: gives a tensor by its name; those of one file are in memory together.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(files) == 1:
        files = [WEIGHTS]
    else:
        listed = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": listed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file, shard in zip(files, shards, strict=True):
        save_file({name: tensor(name) for name in shard}, folder / file, metadata={"format": "pt"})
        # safetensors keeps them from everybody else
        (folder / file).chmod(config_file.stat().st_mode)


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="numpy") as reader:
            yield reader
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file}: not readable as safetensors ({reason}); download it again") from None


def _listed_files(folder: Path) -> dict[str, Path]:
    """Tensor -> file, as the index lists them; empty where the weights are one file, which comes first as with
    Hugging Face. Other safetensors in the folder (an original checkpoint, adapters) are not the model.
    """
    if (folder / WEIGHTS).exists():
        return {}
    index = folder / INDEX
    if not index.exists():
        _refuse_without_weights(folder)
    try:
        names = parse_json(index.read_text(encoding="utf-8-sig"))["weight_map"].items()
        listed = {str(name): folder / Path(file).name for name, file in names}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{index}: not an index of weights (no weight_map); download it again") from None
    if not listed:
        raise InputError(f"{index}: lists no tensor; download it again")
    # What a damaged index names may be no name that a file system can be asked for.
    there = {file.name for file in folder.iterdir()}
    if missing := sorted({file.name for file in listed.values()} - there):
        raise InputError(f"{folder / missing[0]}: missing, and named by {index.name}; download it again")
    return listed


def refuse_adapter(folder: Path) -> None:
    """Refuses a folder without a model that holds an adapter of one, as peft and MLX save it.

    Raises:
      InputError: there is an adapter; the message names its base model, and how to merge the two.
    """
    files, described = [path.name for path in _adapters(folder)], folder / ADAPTER
    if not described.exists() and not files:
        return
    try:
        content = parse_json(described.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        content = None
    fields: dict[str, Any] = content if isinstance(content, dict) else {}
    mlx = "fine_tune_type" in fields or any(_MLX.search(name) for name in files)
    base = fields.get("model" if mlx else "base_model_name_or_path")
    named = f" {base}" if isinstance(base, str) and base else ""
    if (kind := fields.get("peft_type")) in _NOT_MERGED:
        raise InputError(
            f"{described}: peft_type={kind!r}: cannot be merged with its base model{named}, and is not supported; use "
            "a LoRA adapter, or a model that was trained whole"
        )
    merge = (
        f"MLX: mlx_lm.fuse --model{named or ' BASE'} --adapter-path FOLDER --save-path OUT --dequantize, and give OUT"
        if mlx
        else "peft: AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(OUT), "
        "copy the tokenizer's files to OUT, and give OUT"
    )
    raise InputError(f"{folder}: an adapter without its base model{named}; merge them with {merge}")


def _adapters(folder: Path) -> list[Path]:
    mlx = (path for path in folder.glob("*adapters.*") if _MLX.search(path.name))
    return sorted([*folder.glob("adapter_model*.*"), *mlx])


def _refuse_without_weights(folder: Path) -> None:
    refuse_adapter(folder)
    if pickles := sorted(path.name for path in folder.glob("*.bin")):
        raise InputError(
            f"{folder / pickles[0]}: a pickle, which can run code, is not read; convert it with transformers: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OUT)"
        )
    raise InputError(f"{folder}: no {WEIGHTS}; a model folder has config.json and {WEIGHTS}")
