"""Models in and out of Hugging Face format: `config.json`, and safetensors under Hugging Face names.

Import goes parameter by parameter, tensor by tensor, into arrays of the final dtype where they will lie: beyond the
model the host holds one stacked parameter and one tensor.
"""

import logging
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json
from prorank_jax.model.decoder import Decoder, DecoderConfig, Params
from prorank_jax.model.families import FAMILIES, decoder_config
from prorank_jax.model.gguf import SUFFIX
from prorank_jax.model.gguf_folder import folder_of
from prorank_jax.model.tensors import CLASSIFIER, EMBEDDING, UNEMBEDDING, Entry, get, put, tensor_table
from prorank_jax.model.weights import WEIGHTS, Weights, refuse_adapter, write_folder
from prorank_jax.storage import fetched

BUILTIN = {"builtin:tiny": Path(__file__).parent.parent / "demo" / "tiny_base"}
# What Hugging Face derives from the configuration, and older checkpoints hold all the same.
_DERIVED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
# Heads next to the language model: of a classifier, and TRL's and OpenRLHF's of a value, which read the hidden states.
_HEADS = ("score.", "v_head.", "value_head.")
# What peft adds to a model, as parts of names.
_ADAPTER = re.compile(r"\.(lora_(A|B|E|embedding_A|embedding_B|magnitude_vector)|base_layer|modules_to_save)(\.|$)")
_WRAPPERS = {
    "base_model.model.": "peft's wrapper; save model.merge_and_unload()",
    "_orig_mod.": "torch.compile's wrapper; save model._orig_mod",
    "module.": "a data-parallel wrapper; save model.module",
}
"""Beginnings of names, and what the model was wrapped in when it was saved."""
_log = logging.getLogger(__name__)
_DOWNLOADED = ("*.json", "model*.safetensors", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class ModelFolder:
    """A model as its folder describes it: where it lies, and its `config.json`."""

    folder: Path
    hf_config: dict[str, Any]
    config: DecoderConfig


@dataclass(frozen=True)
class Pretrained(ModelFolder):
    """A model folder in memory: with its parameters."""

    params: Params


def resolve(source: str | Path, files: Sequence[str] = _DOWNLOADED) -> Path:
    """The folder on this machine of a folder, a built-in model, a GGUF file (written as a folder once), or a hub id
    (downloaded, or found in the local cache).

    Args:
      files: patterns of what is asked of a hub id or of a bucket.

    Raises:
      InputError: there is no such folder and the hub cannot give it.
    """
    if str(source) in BUILTIN:
        return BUILTIN[str(source)]
    if str(source).endswith(SUFFIX):
        return folder_of(Path(fetched(source)))
    if (folder := Path(fetched(source, files))).is_dir():
        return folder
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise InputError(
            f"{source}: no such model folder; give a folder with config.json, a GGUF file, or a hub id owner/name"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(files)))
    except Exception as error:  # errors of the HTTP library, which is the hub's own choice, have no common base
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{source}: not a folder here, and the hub did not give it ({reason}); give the path of a folder"
        ) from None


def read_hf_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder."""
    path = folder / "config.json"
    try:
        config = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        refuse_adapter(folder)
        raise InputError(f"{path}: missing; a model folder has config.json and {WEIGHTS}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a readable model folder") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); mend or download it again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds no JSON object; mend or download it again")
    return config


def read_folder(source: str | Path, files: Sequence[str] = _DOWNLOADED) -> ModelFolder:
    """A folder (or hub id, or `builtin:tiny`) without its weights; `files` as in `resolve`.

    Raises:
      InputError: there is none, or its family is not supported.
    """
    folder = resolve(source, files)
    hf_config = read_hf_config(folder)
    return ModelFolder(folder, hf_config, decoder_config(hf_config, str(folder / "config.json")))


def check_weights(model: ModelFolder) -> Weights:
    """The weights of a folder, of which the files' headers alone are read.

    Raises:
      InputError: there are none, or tensors are missing, unknown or misshapen.
    """
    weights = Weights(model.folder)
    _check_names(weights, tensor_table(model.config), model.config)
    return weights


def load_pretrained(
    source: str | Path, dtype: str = "float32", place: Callable[[Params], Any] | None = None
) -> Pretrained:
    """Reads a Hugging Face folder (or hub id, or `builtin:tiny`) into parameters.

    Args:
      dtype: of the parameters, `float32` or `bfloat16`, whatever the dtype of the file.
      place: from the tree of parameter shapes to the tree of their shardings (`runtime.mesh.shardings`); default: all
        on the default device.

    Raises:
      InputError: an unsupported family; tensors that are missing, unknown, misshapen or not finite; a damaged file.
    """
    model = read_folder(source)
    config = model.config
    table = tensor_table(config)
    weights = check_weights(model)
    if config.tied and UNEMBEDDING in weights.shapes:
        _check_tied(weights)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0))
    homes = None if place is None else place(shapes)
    params: Params = {}
    # The largest first: what is read before it is placed is least beside an almost empty memory.
    for entry in sorted(table, key=lambda entry: -np.prod(entry.shape(config.layers))):
        home = None if homes is None else get(homes, entry.path)
        put(params, entry.path, _read(weights, entry, config, np.dtype(dtype), home))
    return Pretrained(model.folder, model.hf_config, config, params)


def save_pretrained(
    folder: Path,
    params: Params,
    config: DecoderConfig,
    hf_config: dict[str, Any],
    *,
    dtype: str = "float32",
    classifier: np.ndarray | None = None,
) -> None:
    """Writes `config.json` and the weights (sharded with an index above 5 GB) into an existing folder.

    Args:
      hf_config: what stands in `config.json`, but for the dtype.
      dtype: of the tensors, `float32`, `bfloat16` or `float16`.
      classifier: float32 [1, D], the matrix of a classifier of one label, in place of the unembedding.
    """
    table = [entry for entry in tensor_table(config) if classifier is None or entry.name != UNEMBEDDING]
    parts = {name: (entry, layer) for entry in table for layer, name in enumerate(entry.names(config.layers))}
    sizes = {name: np.dtype(dtype).itemsize * int(np.prod(entry.theirs)) for name, (entry, _) in parts.items()}
    if classifier is not None:
        sizes[CLASSIFIER] = np.dtype(dtype).itemsize * classifier.size

    def tensor(name: str) -> np.ndarray:
        if classifier is not None and name == CLASSIFIER:
            return classifier.astype(dtype)
        entry, layer = parts[name]
        value = get(params, entry.path)
        return entry.to_theirs(np.asarray(value[layer] if entry.stacked else value).astype(dtype))

    written = {key: value for key, value in hf_config.items() if key != "torch_dtype"} | {"dtype": dtype}
    write_folder(folder, written, sizes, tensor)


def causal_config(hf_config: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of the family's causal language model, whatever the folder was that it was read from."""
    # Code that the folder named is not copied with the model.
    kept = {name: value for name, value in hf_config.items() if name != "auto_map"}
    return kept | {"architectures": [FAMILIES[hf_config["model_type"]].causal_lm]}


def classifier_config(hf_config: dict[str, Any], pad_id: int) -> dict[str, Any]:
    """The `config.json` of the family's sequence classifier of one label."""
    return causal_config(hf_config) | {
        "architectures": [FAMILIES[hf_config["model_type"]].classifier],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "pad_token_id": pad_id,
    }


def _check_names(weights: Weights, table: list[Entry], c: DecoderConfig) -> None:
    """Each tensor gets the name of its parameter; each parameter has its tensors, and their shapes agree."""
    if c.layers > len(weights.shapes):
        raise InputError(
            f"{weights.folder / 'config.json'}: num_hidden_layers={c.layers}, and the weights are "
            f"{len(weights.shapes)} tensors; they disagree"
        )
    expected = {name: entry.theirs for entry in table for name in entry.names(c.layers)}
    names = {*expected, UNEMBEDDING}
    weights.rename(lambda name: _as_expected(name, names))
    if adapters := [name for name in weights.shapes if _ADAPTER.search(name)]:
        raise InputError(
            f"{weights.describe(adapters[0])} is an adapter's, which was not merged; merge it with peft: "
            "model.merge_and_unload().save_pretrained(OUT), and give OUT"
        )
    heads = []
    for name, shape in weights.shapes.items():
        if name in expected:
            if shape != expected[name]:
                raise InputError(
                    f"{weights.describe(name)} has shape {shape}, config.json says {expected[name]}; they disagree"
                )
        elif name.startswith(_HEADS):
            heads.append(name)
        elif not (_DERIVED.search(name) or (c.tied and name == UNEMBEDDING)):
            wrapper = next((f": it was saved inside of {_WRAPPERS[by]}" for by in _WRAPPERS if name.startswith(by)), "")
            raise InputError(
                f"{weights.describe(name)} is unknown to this family; config.json and weights disagree{wrapper}"
            )
    if missing := [name for name in expected if name not in weights.shapes]:
        raise InputError(
            f"{weights.folder}: {len(missing)} tensors are missing, the first is {missing[0]}; "
            "download the folder again"
        )
    if heads:
        _log.warning("%s: %s: not read: the score comes from the language model", weights.folder, ", ".join(heads))


def _as_expected(name: str, expected: Collection[str]) -> str:
    """The name that transformers would look a tensor up by: folders of a base model alone have no `model.` before
    their names, and folders of what was wrapped in another model have it twice.
    """
    for candidate in (name, f"model.{name}", name.removeprefix("model.")):
        if candidate in expected:
            return candidate
    return name


def _check_tied(weights: Weights) -> None:
    """A folder that says that the unembedding is the embedding may hold it all the same, but no other."""
    if not np.array_equal(weights.read(UNEMBEDDING), weights.read(EMBEDDING)):
        raise InputError(
            f"{weights.describe(UNEMBEDDING)} is not the embedding, and config.json says "
            "tie_word_embeddings=true; set it to false, or take the tensor out"
        )


def _read(weights: Weights, entry: Entry, c: DecoderConfig, dtype: np.dtype, home: Sharding | None) -> jax.Array:
    host = np.empty(entry.shape(c.layers), dtype)
    for layer, name in enumerate(entry.names(c.layers)):
        (host[layer] if entry.stacked else host)[...] = entry.to_ours(weights.read(name))
    placed = (
        jax.device_put(host)
        if home is None
        else jax.make_array_from_callback(host.shape, home, lambda index: host[index])
    )
    # Transfers run behind: unless each is waited for, several host buffers are alive at once.
    return jax.block_until_ready(placed)
