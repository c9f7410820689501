"""Weights in and out of Hugging Face format: safetensors under Hugging Face names, `config.json` beside them.

One table maps every Hugging Face tensor to a parameter path. A Hugging Face linear layer stores
[out, in]; ours stores [in, out] with heads as axes of their own, so a kernel is transposed and reshaped, and
nothing else is changed: export gives back the imported tensors bit for bit.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prorank_jax.errors import InputError
from prorank_jax.model.decoder import DecoderConfig, Params
from prorank_jax.model.families import decoder_config

BUILTIN = {"builtin:tiny": Path(__file__).parent.parent / "demo" / "tiny_base"}
SHARD_BYTES = 5 * 10**9


class Entry(NamedTuple):
    """One parameter: its path, its Hugging Face name (`{}` is the layer) and shape; a kernel is stored transposed."""

    path: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    kernel: bool = False

    def names(self, layers: int) -> list[str]:
        return [self.name.format(layer) for layer in range(layers)] if "{}" in self.name else [self.name]


def tensor_table(c: DecoderConfig) -> list[Entry]:
    """Every tensor of a checkpoint of this shape, each once."""
    query, key_value = c.heads * c.head_size, c.kv_heads * c.head_size
    layer = "model.layers.{}."
    table = [
        Entry(("embedding",), "model.embed_tokens.weight", (c.vocabulary, c.width)),
        Entry(("layers", "attention_norm", "scale"), layer + "input_layernorm.weight", (c.width,)),
        Entry(("layers", "mlp_norm", "scale"), layer + "post_attention_layernorm.weight", (c.width,)),
        Entry(("final_norm", "scale"), "model.norm.weight", (c.width,)),
    ]
    for ours, theirs, out, into in (
        ("attention.query", "self_attn.q_proj", query, c.width),
        ("attention.key", "self_attn.k_proj", key_value, c.width),
        ("attention.value", "self_attn.v_proj", key_value, c.width),
        ("attention.output", "self_attn.o_proj", c.width, query),
        ("mlp.gate", "mlp.gate_proj", c.mlp_width, c.width),
        ("mlp.up", "mlp.up_proj", c.mlp_width, c.width),
        ("mlp.down", "mlp.down_proj", c.width, c.mlp_width),
    ):
        path = ("layers", *ours.split("."))
        table.append(Entry((*path, "kernel"), f"{layer}{theirs}.weight", (out, into), kernel=True))
        if c.qkv_bias and path[-1] in ("query", "key", "value"):
            table.append(Entry((*path, "bias"), f"{layer}{theirs}.bias", (out,)))
    if not c.tied:
        table.append(Entry(("unembedding",), "lm_head.weight", (c.vocabulary, c.width)))
    return table


@dataclass(frozen=True)
class Pretrained:
    """A model folder in memory: where it lies, its `config.json`, and its parameters as float32."""

    folder: Path
    hf_config: dict[str, Any]
    config: DecoderConfig
    params: Params


def resolve(source: str | Path) -> Path:
    """The local folder of a folder, a built-in model, or a hub id (downloaded, or found in the local cache).

    Raises:
      InputError: there is no such folder and the hub cannot give it.
    """
    if str(source) in BUILTIN:
        return BUILTIN[str(source)]
    if Path(source).is_dir():
        return Path(source)
    if str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise InputError(f"{source}: no such model folder; give a folder with config.json, or a hub id owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{source}: not a folder here, and the hub did not give it ({reason}); give the path of a folder"
        ) from None


def read_hf_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; a model folder has config.json and model.safetensors") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a readable model folder") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); mend or download it again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds no JSON object; mend or download it again")
    return config


def load_pretrained(source: str | Path) -> Pretrained:
    """Reads a Hugging Face folder (or hub id, or `builtin:tiny`) into float32 parameters.

    Raises:
      InputError: an unsupported family; tensors that are missing, unknown, misshapen or not finite; a damaged file.
    """
    folder = resolve(source)
    hf_config = read_hf_config(folder)
    config = decoder_config(hf_config, str(folder / "config.json"))
    table = tensor_table(config)
    expected = {name: entry.shape for entry in table for name in entry.names(config.layers)}
    tensors: dict[str, np.ndarray] = {}
    for file, name, tensor in _read_tensors(folder):
        if config.tied and name == "lm_head.weight":
            continue
        if name not in expected:
            raise InputError(f"{file}: tensor {name} is unknown to this family; config.json and weights disagree")
        if tensor.shape != expected[name]:
            raise InputError(
                f"{file}: tensor {name} has shape {tensor.shape}, config.json says {expected[name]}; they disagree"
            )
        if not np.isfinite(tensor).all():
            raise InputError(f"{file}: tensor {name} holds values that are not finite; the weights are damaged")
        tensors[name] = tensor
    if missing := [name for name in expected if name not in tensors]:
        raise InputError(
            f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}; download the folder again"
        )
    params: Params = {}
    for entry in table:
        _set(params, entry.path, _to_ours(entry, [tensors.pop(name) for name in entry.names(config.layers)], config))
    return Pretrained(folder, hf_config, config, params)


def save_pretrained(folder: Path, params: Params, config: DecoderConfig, hf_config: dict[str, Any]) -> None:
    """Writes `config.json` and the weights (float32, sharded with an index above 5 GB) into an existing folder."""
    tensors: dict[str, np.ndarray] = {}
    for entry in tensor_table(config):
        tensors |= _to_theirs(entry, np.asarray(_get(params, entry.path), np.float32), config)
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        for file, shard in zip(files, shards, strict=True):
            save_file(shard, folder / file, metadata={"format": "pt"})
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in shard},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    written = {key: value for key, value in hf_config.items() if key != "torch_dtype"} | {"dtype": "float32"}
    config_file = folder / "config.json"
    config_file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    for weights in folder.glob("*.safetensors"):  # safetensors keeps them from everybody else
        weights.chmod(config_file.stat().st_mode)


def _read_tensors(folder: Path) -> Iterator[tuple[Path, str, np.ndarray]]:
    files = _weight_files(folder)
    if not files:
        if pickles := sorted(os.path.basename(path) for path in folder.glob("*.bin")):
            raise InputError(
                f"{folder / pickles[0]}: a pickle, which can run code, is not read; convert the model to "
                "safetensors with transformers' save_pretrained"
            )
        raise InputError(f"{folder}: no *.safetensors file; a model folder has config.json and model.safetensors")
    for file in files:
        try:
            with safe_open(file, framework="numpy") as reader:
                for name in reader.keys():
                    yield file, name, reader.get_tensor(name).astype(np.float32)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file}: not readable as safetensors ({error}); download it again") from None


def _weight_files(folder: Path) -> list[Path]:
    """The files that the index names; without one, whatever safetensors there are.

    Raises:
      InputError: the index is not one, or names a file that is not there.
    """
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{index}: not an index of weights (no weight_map); download it again") from None
    if missing := sorted(name for name in names if not (folder / name).exists()):
        raise InputError(f"{folder / missing[0]}: missing, and named by {index.name}; download it again")
    return sorted(folder / name for name in names)


def _to_ours(entry: Entry, tensors: list[np.ndarray], c: DecoderConfig) -> Array:
    ours = [tensor.T if entry.kernel else tensor for tensor in tensors]
    stacked = np.stack(ours) if "{}" in entry.name else ours[0]
    return jnp.asarray(stacked.reshape(_our_shape(entry, c)))


def _to_theirs(entry: Entry, value: np.ndarray, c: DecoderConfig) -> dict[str, np.ndarray]:
    names = entry.names(c.layers)
    shape = entry.shape[::-1] if entry.kernel else entry.shape
    layers = value.reshape(len(names), *shape)
    return {
        name: np.ascontiguousarray(layer.T if entry.kernel else layer)
        for name, layer in zip(names, layers, strict=True)
    }


def _our_shape(entry: Entry, c: DecoderConfig) -> tuple[int, ...]:
    heads = {"query": c.heads, "key": c.kv_heads, "value": c.kv_heads}
    shape = entry.shape[::-1] if entry.kernel else entry.shape
    if entry.path[-2:-1] and entry.path[-2] in heads:
        shape = (*shape[:-1], heads[entry.path[-2]], c.head_size)
    elif entry.path[-2:] == ("output", "kernel"):
        shape = (c.heads, c.head_size, c.width)
    return (c.layers, *shape) if "{}" in entry.name else shape


def _get(tree: Params, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _set(tree: Params, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
