"""The one decoder: a causal language model over stacked layers, as a pure function of its parameters.

Shape legend, for the whole package: B rows, P prompts, G samples per prompt, T completion tokens, L
tokens, S keys attended to, D width, N query heads, K key-value heads, H head size, F mlp width, V
vocabulary; Q queries and C candidates per query in score learning.

`forward` gives hidden states, `unembed` turns chosen ones into logits: an array [B, L, V] never exists.
The cache is a tuple of key-value segments that the caller owns; a call returns the keys and values of its own
tokens, and what becomes of them (kept as a prefix, written to a buffer, dropped) is the caller's choice.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from prorank_jax.model.attention import attend, rotary_angles, rotate

Params = dict[str, Any]


@dataclass(frozen=True)
class DecoderConfig:
    """What distinguishes one decoder from another; read from `config.json` by `families.py`."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp_width: int
    rope_theta: float
    norm_epsilon: float
    qkv_bias: bool
    tied: bool
    """The unembedding is the embedding table."""


class KeyValues(NamedTuple):
    """Keys and values of all layers, each [layers, B, L, K, H]."""

    keys: Array
    values: Array


class RmsNorm(nn.Module):
    """Root mean square normalisation (arXiv 1910.07467) in float32, whatever the compute dtype."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxLxD: Array) -> Array:
        scale_D = self.param("scale", nn.initializers.ones, (x_BxLxD.shape[-1],))
        x_BxLxD = x_BxLxD.astype(jnp.float32)
        inverse = lax.rsqrt(jnp.square(x_BxLxD).mean(axis=-1, keepdims=True) + self.epsilon)
        return (x_BxLxD * inverse * scale_D[None, None]).astype(self.dtype)


class Attention(nn.Module):
    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x_BxLxD: Array, cache: tuple[KeyValues, ...], angles: tuple[Array, Array], mask_BxLxS: Array
    ) -> tuple[Array, KeyValues]:
        c = self.config

        def project(name: str, heads: int) -> Array:
            return nn.DenseGeneral((heads, c.head_size), use_bias=c.qkv_bias, dtype=self.dtype, name=name)(x_BxLxD)

        query = rotate(project("query", c.heads), angles)
        own = KeyValues(rotate(project("key", c.kv_heads), angles), project("value", c.kv_heads))
        segments = (*cache, own)
        mixed = attend(query, [kv.keys for kv in segments], [kv.values for kv in segments], mask_BxLxS)
        output = nn.DenseGeneral(c.width, axis=(-2, -1), use_bias=False, dtype=self.dtype, name="output")
        return output(mixed), own


class Mlp(nn.Module):
    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxLxD: Array) -> Array:
        def dense(name: str, width: int) -> nn.Dense:
            return nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)

        gate = nn.silu(dense("gate", self.config.mlp_width)(x_BxLxD))
        return dense("down", self.config.width)(gate * dense("up", self.config.mlp_width)(x_BxLxD))


class Layer(nn.Module):
    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x_BxLxD: Array, cache: tuple[KeyValues, ...], angles: tuple[Array, Array], mask_BxLxS: Array
    ) -> tuple[Array, KeyValues]:
        def norm(name: str) -> RmsNorm:
            return RmsNorm(self.config.norm_epsilon, self.dtype, name=name)

        mixed, own = Attention(self.config, self.dtype, name="attention")(
            norm("attention_norm")(x_BxLxD), cache, angles, mask_BxLxS
        )
        x_BxLxD = x_BxLxD + mixed
        return x_BxLxD + Mlp(self.config, self.dtype, name="mlp")(norm("mlp_norm")(x_BxLxD)), own


class DecoderModule(nn.Module):
    config: DecoderConfig
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(
        self, tokens_BxL: Array, positions_BxL: Array, mask_BxLxS: Array, cache: tuple[KeyValues, ...]
    ) -> tuple[Array, KeyValues]:
        c = self.config
        table_VxD = self.param("embedding", _TABLE, (c.vocabulary, c.width))
        if not c.tied:
            self.param("unembedding", _TABLE, (c.vocabulary, c.width))
        x_BxLxD = table_VxD[tokens_BxL].astype(self.dtype)
        angles = rotary_angles(positions_BxL, c.head_size, c.rope_theta)
        # One compiled layer, scanned over stacked parameters: compile time does not grow with depth.
        stack = nn.scan(
            nn.remat(Layer, prevent_cse=False) if self.remat else Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=c.layers,
        )
        x_BxLxD, own = stack(c, self.dtype, name="layers")(x_BxLxD, cache, angles, mask_BxLxS)
        return RmsNorm(c.norm_epsilon, self.dtype, name="final_norm")(x_BxLxD), own


@dataclass(frozen=True)
class Decoder:
    """A decoder's pure functions. Parameters are a nested dict of float32 arrays, layers stacked.

    `dtype` is the compute dtype; `remat` recomputes each layer in the backward pass.
    """

    config: DecoderConfig
    dtype: jnp.dtype = jnp.dtype("float32")
    remat: bool = False

    @property
    def _module(self) -> DecoderModule:
        return DecoderModule(self.config, self.dtype, self.remat)

    def init(self, rng: Array) -> Params:
        """Random parameters."""
        token = jnp.zeros((1, 1), jnp.int32)
        return self._module.init(rng, token, token, jnp.ones((1, 1, 1), bool), ())["params"]

    def forward(
        self,
        params: Params,
        tokens_BxL: Array,
        positions_BxL: Array,
        mask_BxLxS: Array,
        cache: tuple[KeyValues, ...] = (),
    ) -> tuple[Array, KeyValues]:
        """Hidden states [B, L, D] after the final norm, and the keys and values of these tokens.

        Args:
          params: as from `init`.
          tokens_BxL: token ids.
          positions_BxL: the position of each token in its own sequence.
          mask_BxLxS: bool, True where a token may look; S counts the cache's segments in order, then L.
          cache: key-value segments [layers, B, S_i, K, H] of earlier tokens.
        """
        outputs: Any = self._module.apply({"params": params}, tokens_BxL, positions_BxL, mask_BxLxS, cache)
        return outputs

    def unembed(self, params: Params, hidden: Array, token_ids: Array | None = None) -> Array:
        """Logits in float32: hidden [..., D] -> [..., V], or [..., len(token_ids)] of the chosen rows."""
        table = params["embedding" if self.config.tied else "unembedding"]
        rows = table if token_ids is None else table[token_ids]
        return jnp.einsum("...d,vd->...v", hidden, rows.astype(hidden.dtype), preferred_element_type=jnp.float32)


_TABLE = nn.initializers.normal(0.02)
