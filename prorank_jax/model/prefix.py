"""Prompts computed once: what both stages and the reranker start from."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from prorank_jax.model.attention import causal
from prorank_jax.model.decoder import Decoder, KeyValues, Params


class Prefix(NamedTuple):
    """Right-padded prompts as a network sees them.

    Attributes:
      cache: keys and values, each [layers, P, L, K, H].
      last_PxD: the hidden state after each prompt's last token.
      valid_PxL: bool, False on padding.
      lengths_P: int32, tokens of each prompt.
    """

    cache: KeyValues
    last_PxD: Array
    valid_PxL: Array
    lengths_P: Array


def prefill(decoder: Decoder, params: Params, tokens_PxL: Array, lengths_P: Array) -> Prefix:
    """Computes right-padded prompts once."""
    P, L = tokens_PxL.shape
    positions = jnp.broadcast_to(jnp.arange(L), (P, L))
    hidden_PxLxD, cache = decoder.forward(params, tokens_PxL, positions, causal(lengths_P, L))
    last_PxD = jnp.take_along_axis(hidden_PxLxD, (lengths_P - 1)[:, None, None], axis=1)[:, 0]
    return Prefix(cache, last_PxD, jnp.arange(L)[None] < lengths_P[:, None], lengths_P)
