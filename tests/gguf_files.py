"""Small GGUF files as llama.cpp's converter writes them, by the `gguf` library's own names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFValueType,
    GGUFWriter,
    TokenType,
    get_tensor_name_map,
)
from gguf.quants import quantize
from safetensors.numpy import load_file

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3_text": MODEL_ARCH.GEMMA3,
}
"""By `model_type`."""
F32 = GGMLQuantizationType.F32


def write_gguf(
    file: Path,
    folder: Path,
    *,
    tokenizer: Path | None = None,
    kind: GGMLQuantizationType = F32,
    parts: int = 1,
    extra: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Writes a model folder as a GGUF file, or as the parts of a split one; returns the first file.

    Args:
      tokenizer: a folder with a byte-level BPE tokenizer; default: the file holds none.
      kind: how matrices are stored.
      extra: metadata besides: whole numbers, floats and texts.
      tensors: tensors besides, by the names of GGUF.
    """
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    # The writer counts bytes (the largest is not above it) to split.
    writer = GGUFWriter(file, MODEL_ARCH_NAMES[architecture], split_max_tensors=0)
    if parts > 1:
        stored = load_file(folder / "model.safetensors")
        writer = GGUFWriter(file, MODEL_ARCH_NAMES[architecture], split_max_tensors=-(-len(stored) // parts))
    _add_shape(writer, config)
    if tokenizer is not None:
        _add_tokenizer(writer, tokenizer)
    for key, value in (extra or {}).items():
        writer.add_key_value(key, value, GGUFValueType.get_type(value))
    names = get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        theirs = names.get_name(name, (".weight", ".bias"))
        assert theirs is not None, name
        _add_tensor(writer, theirs, _converted(name, tensor.astype(np.float32), config), kind)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file if parts == 1 else next(file.parent.glob(f"{file.stem}-00001-of-*.gguf"))


def _add_shape(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    rope = config.get("rope_parameters", config)
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if config["model_type"].startswith("gemma"):
        writer.add_sliding_window(config["sliding_window"])
    if config["model_type"] == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _add_tokenizer(writer: GGUFWriter, folder: Path) -> None:
    described = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = described["model"]["vocab"] | {token["content"]: token["id"] for token in described["added_tokens"]}
    special = {token["content"] for token in described["added_tokens"]}
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in described["model"]["merges"]]
    )
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    writer.add_pad_token_id(vocabulary["<|endoftext|>"])
    writer.add_chat_template((folder / "chat_template.jinja").read_text())


def _add_tensor(writer: GGUFWriter, name: str, tensor: np.ndarray, kind: GGMLQuantizationType) -> None:
    if tensor.ndim == 1 or kind == F32:
        writer.add_tensor(name, tensor)
    else:
        writer.add_tensor(name, quantize(tensor, kind), raw_dtype=kind)


def _converted(name: str, tensor: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Rows of q and k of Llama as neighbours that are rotated together; Gemma's norms with 1 added."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    if config["model_type"] == "llama" and (count := heads.get(name.split(".")[-2])):
        halves = tensor.reshape(count, 2, -1, *tensor.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(tensor.shape)
    if config["model_type"].startswith("gemma") and "norm" in name:
        return tensor + 1
    return tensor
