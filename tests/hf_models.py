"""Random models of each family, written by torch, whose every weight matters; their logits, torch's and ours."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from prorank_jax.model.decoder import Decoder, Params

SMALL = {
    "vocab_size": 211,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 72,
    "tie_word_embeddings": True,
}
"""With the defaults of Hugging Face for everything else."""


def write_model(folder: Path, family: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """A small model of a family, saved into `folder`; `changes` replace fields of its configuration."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SMALL | changes))
    # Soft caps exist in the eager attention only.
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():  # biases and norms start at constants, which would hide a swapped or dropped one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.mul_(4.0)
    model.to(dtype).save_pretrained(folder)
    return model


def torch_logits(model: PreTrainedModel, tokens: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B, L, V] of padded rows, and the position of each token; `real` [B, L] is False on padding."""
    positions = (np.cumsum(real, 1) - 1).clip(0)
    with torch.no_grad():
        logits = model(
            torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(real.copy()),
            position_ids=torch.from_numpy(positions),
        ).logits
    return logits.float().numpy(), positions


def our_logits(
    decoder: Decoder, params: Params, tokens: np.ndarray, positions: np.ndarray, real: np.ndarray
) -> np.ndarray:
    """Logits of rows whose padding stands on either side."""
    length = tokens.shape[1]
    mask = np.tril(np.ones((length, length), bool))[None] & real[:, None, :]
    hidden, _ = decoder.forward(
        params, jnp.asarray(tokens, jnp.int32), jnp.asarray(positions, jnp.int32), jnp.asarray(mask)
    )
    return np.asarray(decoder.unembed(params, hidden))
