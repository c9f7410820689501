"""GGUF, the file format of llama.cpp, as a source of models: metadata to `config.json`, tensors to Hugging Face's.

The `gguf` library reads and dequantises. What differs between the two formats: names; in files of the llama
architecture the rows of queries and keys are permuted, as llama.cpp rotates neighbours instead of halves; Gemma's
norms are stored with 1 added.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prorank_jax.errors import InputError
from prorank_jax.model.decoder import DecoderConfig
from prorank_jax.model.families import FAMILIES
from prorank_jax.model.tensors import Entry, tensor_table

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

SUFFIX = ".gguf"
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_ROPE_FACTORS = "rope_freqs.weight"
# The published Llama 3.1 and 3.2: what the file holds are the factors that follow from these.
_LLAMA3_FACTORS = (8.0, 32.0)
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_POSITIONS = 8192


class Architecture(NamedTuple):
    """What a `general.architecture` stands for."""

    model_type: str
    permuted: bool = False
    """The rows of queries and keys are in the order of interleaved rotary pairs."""
    shifted_norms: bool = False
    """Norm scales are stored with 1 added."""


ARCHITECTURES = {
    "llama": Architecture("llama", permuted=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma2": Architecture("gemma2", shifted_norms=True),
    "gemma3": Architecture("gemma3_text", shifted_norms=True),
}

# Field of the metadata, after the architecture's name -> field of config.json.
_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_GEMMA_FIELDS = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base_swa": "rope_local_base_freq",
}
_PATTERN = "attention.sliding_window_pattern"
_INERT = {
    *("vocab_size", "attention.value_length", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "attention.sliding_window"),
}

# Path of a parameter -> name of its tensor, the same in all five architectures.
_NAMES = {
    "embedding": "token_embd",
    "unembedding": "output",
    "final_norm.scale": "output_norm",
    "layers.attention_norm.scale": "blk.{}.attn_norm",
    "layers.attention_post_norm.scale": "blk.{}.post_attention_norm",
    "layers.mlp_norm.scale": "blk.{}.ffn_norm",
    "layers.mlp_post_norm.scale": "blk.{}.post_ffw_norm",
    "layers.attention.query_norm.scale": "blk.{}.attn_q_norm",
    "layers.attention.key_norm.scale": "blk.{}.attn_k_norm",
    "layers.attention.query": "blk.{}.attn_q",
    "layers.attention.key": "blk.{}.attn_k",
    "layers.attention.value": "blk.{}.attn_v",
    "layers.attention.output": "blk.{}.attn_output",
    "layers.mlp.gate": "blk.{}.ffn_gate",
    "layers.mlp.up": "blk.{}.ffn_up",
    "layers.mlp.down": "blk.{}.ffn_down",
}


class GgufFile:
    """A GGUF file, or all parts of a split one: its metadata and its tensors.

    Raises:
      InputError: it is missing or damaged, its architecture is not supported, or a part of it is missing.
    """

    def __init__(self, path: Path):
        self.path = path
        readers = [_opened(part) for part in parts(path)]
        self._metadata = readers[0].fields
        self._tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
        name = self.get("general.architecture")
        if name not in ARCHITECTURES:
            raise InputError(
                f"{path}: general.architecture={name!r} is not supported; use a file of one of: "
                f"{', '.join(ARCHITECTURES)}"
            )
        self.name: str = name
        self.architecture = ARCHITECTURES[name]

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the metadata."""
        field = self._metadata.get(key)
        return default if field is None else field.contents()

    def config(self) -> dict[str, Any]:
        """The `config.json` that the metadata describe.

        Raises:
          InputError: a field is missing, or asks for mathematics that the decoder does not have.
        """
        gemma = self.architecture.shifted_norms
        fields = _FIELDS | (_GEMMA_FIELDS if gemma else {})
        own = {key.removeprefix(f"{self.name}."): self.get(key) for key in self._metadata if self._is_own(key)}
        for key, value in own.items():
            if (
                key not in fields
                and key not in _INERT
                and not (gemma and key == _PATTERN)
                and value not in (None, False, 0, 0.0, "")
            ):
                raise InputError(f"{self.path}: {self.name}.{key}={value!r} is not supported; use another model")
        config: dict[str, Any] = {
            "architectures": [FAMILIES[self.architecture.model_type].causal_lm],
            "model_type": self.architecture.model_type,
            "vocab_size": self.shape("token_embd.weight")[0],
            "tie_word_embeddings": "output.weight" not in self._tensors,
            **{theirs: _plain(own[key]) for key, theirs in fields.items() if key in own},
        }
        head = config.setdefault("head_dim", self._head_size(config))
        for key in ("attention.value_length", "rope.dimension_count"):
            if own.get(key, head) != head:
                raise InputError(
                    f"{self.path}: {self.name}.{key}={own[key]!r} is not the head size {head}, which is not supported; "
                    "use another model"
                )
        for token in ("bos", "eos"):
            config[f"{token}_token_id"] = self.get(f"tokenizer.ggml.{token}_token_id")
        config["pad_token_id"] = self.get("tokenizer.ggml.padding_token_id")
        if gemma:
            config["query_pre_attn_scalar"] = self._gemma_query_scale(config)
            config |= _sliding(own.get(_PATTERN))
        return config | self._rope(own, config)

    @property
    def names(self) -> list[str]:
        """The tensors, by the names of the file."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, rows first as numpy has it.

        Raises:
          InputError: there is none of this name.
        """
        return tuple(map(int, self._tensor(name).shape[::-1]))

    def values(self, name: str) -> np.ndarray:
        """A tensor as it is stored, in float32.

        Raises:
          InputError: its quantisation type is not known, or a value is not finite.
        """
        from gguf.quants import dequantize

        tensor = self._tensor(name)
        try:
            values: np.ndarray = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        except (NotImplementedError, ValueError) as error:
            raise InputError(
                f"{self.path}: tensor {name} is of type {tensor.tensor_type.name}, which the gguf library does not "
                f"dequantise ({error}); use a file of another quantisation"
            ) from None
        if not np.isfinite(values).all():
            raise InputError(f"{self.path}: tensor {name} holds values that are not finite; the file is damaged")
        return values

    def _is_own(self, key: str) -> bool:
        return key.startswith(f"{self.name}.")

    def _tensor(self, name: str) -> "ReaderTensor":
        if name not in self._tensors:
            raise InputError(f"{self.path}: tensor {name} is missing; the file does not hold a whole model")
        return self._tensors[name]

    def _head_size(self, config: Mapping[str, Any]) -> int | None:
        width, heads = config.get("hidden_size"), config.get("num_attention_heads")
        return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None

    def _gemma_query_scale(self, config: Mapping[str, Any]) -> int | None:
        # The metadata do not hold it. Of all published sizes the two of 27B alone divide otherwise.
        layers = {"gemma2": 46, "gemma3": 62}[self.name]
        return self._head_size(config) if config.get("num_hidden_layers") == layers else config["head_dim"]

    def _rope(self, own: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
        kind = own.get("rope.scaling.type", "none")
        if _ROPE_FACTORS in self._tensors:
            return {"rope_scaling": self._llama3(config)}
        if kind == "none" or self.name == "gemma2":
            return {}
        scaling = {"rope_type": kind, "factor": _plain(own.get("rope.scaling.factor", 1.0))}
        if kind == "linear" and scaling["factor"] in (0.0, 1.0):
            return {}
        return {"rope_scaling": scaling}

    def _llama3(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The scaling of Llama 3.1 or 3.2 that the stored factors follow from."""
        stored = np.asarray(self._tensor(_ROPE_FACTORS).data, np.float32)
        for factor in _LLAMA3_FACTORS:
            scaling = _LLAMA3 | {"factor": factor, "original_max_position_embeddings": _LLAMA3_POSITIONS}
            if np.allclose(stored, _llama3_factors(scaling, config["rope_theta"], config["head_dim"]), rtol=1e-4):
                return scaling
        raise InputError(
            f"{self.path}: tensor {_ROPE_FACTORS} holds rotary factors of no published Llama 3; use another model"
        )


class GgufWeights:
    """The tensors of a file under Hugging Face's names, dequantised when they are read.

    Raises:
      InputError: a tensor is missing, misshapen or unknown.
    """

    def __init__(self, source: GgufFile, config: DecoderConfig):
        self._source, self._config = source, config
        self._stored: dict[str, tuple[Entry, str]] = {}
        for entry in tensor_table(config):
            for theirs, ours in zip(entry.names(config.layers), _names(entry, config.layers), strict=True):
                self._stored[theirs] = entry, ours
                if (shape := source.shape(ours)) != entry.theirs:
                    raise InputError(
                        f"{source.path}: tensor {ours} has shape {shape}, the metadata say {entry.theirs}; "
                        "they disagree"
                    )
        known = {ours for _, ours in self._stored.values()} | {_ROPE_FACTORS}
        if unknown := [name for name in source.names if name not in known]:
            raise InputError(
                f"{source.path}: tensor {unknown[0]} is unknown to the architecture {source.name}; use another file"
            )

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each tensor in float32."""
        return {name: 4 * int(np.prod(entry.theirs)) for name, (entry, _) in self._stored.items()}

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32.

        Raises:
          InputError: its quantisation type is not known, or a value is not finite.
        """
        entry, stored = self._stored[name]
        values = self._source.values(stored)
        heads = {"query": self._config.heads, "key": self._config.kv_heads}.get(entry.path[-2:][0])
        if self._source.architecture.permuted and heads is not None:
            values = _halves(values, heads)
        if self._source.architecture.shifted_norms and entry.path[-1] == "scale":
            values = values - np.float32(1)
        return values


def _sliding(pattern: Any) -> dict[str, Any]:
    """Which layers of Gemma attend to a window alone: every layer's flag, or which one of so many does not."""
    if isinstance(pattern, list):
        return {"layer_types": ["sliding_attention" if slides else "full_attention" for slides in pattern]}
    return {} if pattern is None else {"sliding_window_pattern": pattern}


def _names(entry: Entry, layers: int) -> list[str]:
    """The tensors of an entry, as GGUF calls them."""
    *path, last = entry.path
    scale_or_table = last == "scale" or not path
    name = _NAMES[".".join(entry.path if scale_or_table else path)]
    full = f"{name}.{'bias' if last == 'bias' else 'weight'}"
    return [full.format(layer) for layer in range(layers)] if entry.stacked else [full]


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from interleaved pairs to two halves: [0, 2, 4, 1, 3, 5] of [0, 1, 2, 3, 4, 5]."""
    paired = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows.shape)


def _llama3_factors(scaling: Mapping[str, Any], theta: float, head_size: int) -> np.ndarray:
    """What llama.cpp divides each rotary frequency by: float32 [H / 2]."""
    frequency = theta ** (-np.arange(0, head_size, 2) / head_size)
    length, positions = 2 * np.pi / frequency, scaling["original_max_position_embeddings"]
    low, high = positions / scaling["low_freq_factor"], positions / scaling["high_freq_factor"]
    smooth = (positions / length - scaling["low_freq_factor"]) / (
        scaling["high_freq_factor"] - scaling["low_freq_factor"]
    )
    between = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    factors: np.ndarray = np.where(length < high, 1.0, np.where(length > low, scaling["factor"], between))
    return factors.astype(np.float32)


def _plain(value: Any) -> Any:
    """A number of 32 bits by its shortest digits: 9.999999747378752e-06 is 1e-05."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def parts(path: Path) -> list[Path]:
    """The files of a model, the first of which has the metadata.

    Raises:
      InputError: one is missing.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a GGUF file")
    if not (split := _SPLIT.search(path.name)):
        return [path]
    count = int(split[2])
    names = [path.with_name(f"{path.name[: split.start()]}-{i + 1:05d}-of-{count:05d}{SUFFIX}") for i in range(count)]
    if missing := [name for name in names if not name.is_file()]:
        raise InputError(f"{missing[0]}: missing, one of {count} parts of this model; put all parts into one folder")
    return names


def _opened(path: Path) -> "GGUFReader":
    try:
        from gguf import GGUFReader
    except ImportError:
        raise InputError(f"{path}: reading GGUF files needs the gguf library; pip install gguf") from None
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: not readable as GGUF ({reason}); download it again") from None
