"""The one decoder: a causal language model over stacked layers, as a pure function of its parameters.

Shape legend, for the whole package: B rows, P prompts, G samples per prompt, T completion tokens, L
tokens, S keys attended to, D width, N query heads, K key-value heads, H head size, F mlp width, V
vocabulary; Q queries and C candidates per query in score learning; M tokens of all blocks together.

`forward` gives hidden states, `unembed` turns chosen ones into logits: an array [B, L, V] never exists.
The cache is a tuple of key-value segments that the caller owns; a call returns the keys and values of its own
tokens, and what becomes of them (kept as a prefix, written to a buffer, dropped) is the caller's choice.
`forward_blocks` computes rows of several widths at once: linear maps see all tokens of all blocks as one matrix,
[M, D] inside the layers, and only attention goes from block to block.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from prorank_jax.model.attention import Mask, Rope, dense, rotary_angles, rotate, soft_cap, within_window
from prorank_jax.model.long_attention import Kernel, attend_by
from prorank_jax.model.parts import parameter, whole
from prorank_jax.model.precision import PRODUCT, precision_of, product

Params = dict[str, Any]
Remat = Literal["none", "dots", "full"]
"""What the backward pass computes again: nothing; all but the results of linear maps; whole layers."""
ACTIVATIONS = {"silu": nn.silu, "gelu_tanh": nn.gelu}
"""What the gate of the mlp goes through; Flax's gelu is the tanh approximation."""


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
    rope: Rope
    norm_epsilon: float
    query_scale: float
    """What dot products of queries and keys are multiplied by."""
    tied: bool
    """The unembedding is the embedding table."""
    qkv_bias: bool = False
    qk_norm: bool = False
    """Each head's query and key are normalised before they are rotated."""
    centred_norms: bool = False
    """A norm's scale is stored as its difference from 1."""
    post_norms: bool = False
    """What attention and mlp give is normalised before it is added to the residual stream."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    embedding_scale: float = 1.0
    attention_cap: float | None = None
    logit_cap: float | None = None
    sliding: tuple[bool, ...] = ()
    """For each layer, whether it sees a sliding window only; empty where none does."""
    window: int = 0
    """Positions that a sliding layer sees, its own included."""
    sliding_rope: Rope = Rope()
    """The rotary embedding of sliding layers; `rope` is that of the others."""
    max_positions: int = 2**31 - 1
    """Tokens of a sequence that the model was made for; changes no logit."""


class KeyValues(NamedTuple):
    """Tokens as later ones attend to them: keys and values of all layers, each [layers, B, L, K, H], and positions."""

    keys: Array
    values: Array
    positions_BxL: Array

    def rows(self, rows_B: Array) -> "KeyValues":
        """Those of these rows, as often as they are named."""
        return KeyValues(self.keys[:, rows_B], self.values[:, rows_B], self.positions_BxL[rows_B])

    def write(self, tokens: "KeyValues", start: Array) -> "KeyValues":
        """This buffer with `tokens` in its slots from `start` on."""
        return KeyValues(
            lax.dynamic_update_slice_in_dim(self.keys, tokens.keys, start, axis=2),
            lax.dynamic_update_slice_in_dim(self.values, tokens.values, start, axis=2),
            lax.dynamic_update_slice_in_dim(self.positions_BxL, tokens.positions_BxL, start, axis=1),
        )


class Block(NamedTuple):
    """Rows of equally many tokens.

    Attributes:
      tokens_BxL: token ids.
      positions_BxL: the position of each token in its own sequence.
      mask: where a token may look; S counts what lies before the row, then its own L tokens.
        Sliding layers see of it what lies within their window, by position.
      behind_B: the row of the first block that each row goes on from, where it does.
    """

    tokens_BxL: Array
    positions_BxL: Array
    mask: Mask
    behind_B: Array | None = None


class View(NamedTuple):
    """What a layer knows of a block's positions: angles [B, L, H/2] of its tokens, and the mask of whom they see."""

    angles: tuple[Array, Array]
    mask: Mask


LayerCache = tuple[tuple[Array, Array], ...]
"""Keys and values of one layer, segment by segment."""


class RmsNorm(nn.Module):
    """Root mean square normalisation (arXiv 1910.07467) of the last axis in float32, whatever the compute dtype."""

    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        centred = self.config.centred_norms
        init = nn.initializers.zeros if centred else nn.initializers.ones
        scale = self.param("scale", init, (x.shape[-1],)).astype(jnp.float32) + float(centred)
        x = x.astype(jnp.float32)
        inverse = lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.config.norm_epsilon)
        return (x * inverse * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)


class Linear(nn.Module):
    """A linear map of the last `axes` axes of its input to the axes `out`.

    Adapters that lie beside its kernel (see `lora.py`) add what they map the input to.
    """

    out: tuple[int, ...]
    dtype: jnp.dtype
    bias: bool = False
    axes: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rows, into = x.shape[: -self.axes], x.shape[-self.axes :]
        ndim = len(into) + len(self.out)
        init = nn.initializers.lecun_normal(range(self.axes), range(self.axes, ndim))
        shape = (*into, *self.out)
        kernel = whole(parameter(self, "kernel", init, shape), shape, self.dtype)
        # A product of two matrices, whatever the axes: the gradient of one with more takes a CPU nearly twice as long.
        flat = x.reshape(-1, math.prod(into)).astype(self.dtype)
        y = product(flat, kernel.reshape(math.prod(into), math.prod(self.out)))
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, self.out)
            y += bias.reshape(1, -1).astype(self.dtype)
        if self.has_variable("params", "lora_a"):
            narrow = product(flat, self.get_variable("params", "lora_a"))
            y += product(narrow, self.get_variable("params", "lora_b"))
        return y.reshape(*rows, *self.out)


class Attention(nn.Module):
    config: DecoderConfig
    dtype: jnp.dtype
    kernel: Kernel

    @nn.compact
    def __call__(
        self, x_MxD: Array, cache: LayerCache, blocks: tuple[Block, ...], views: tuple[View, ...]
    ) -> tuple[Array, LayerCache]:
        """What each token takes from those that it sees, and the keys and values of each block."""
        c = self.config

        def project(name: str, heads: int) -> Array:
            return Linear((heads, c.head_size), self.dtype, c.qkv_bias, name=name)(x_MxD)

        query, key, value = project("query", c.heads), project("key", c.kv_heads), project("value", c.kv_heads)
        if c.qk_norm:
            query = RmsNorm(c, self.dtype, name="query_norm")(query)
            key = RmsNorm(c, self.dtype, name="key_norm")(key)
        own: LayerCache = ()
        mixed = []
        rows = zip(*(split_blocks(heads, blocks) for heads in (query, key, value)), blocks, views, strict=True)
        for query_BxLxNxH, key_BxLxKxH, value_BxLxKxH, block, view in rows:
            own += ((rotate(key_BxLxKxH, view.angles), value_BxLxKxH),)
            before = cache if block.behind_B is None else (*cache, tuple(heads[block.behind_B] for heads in own[0]))
            keys, values = zip(*before, own[-1], strict=True)
            query_BxLxNxH = rotate(query_BxLxNxH, view.angles)
            mixed.append(attend_by(self.kernel, query_BxLxNxH, keys, values, view.mask, c.query_scale, c.attention_cap))
        return Linear((c.width,), self.dtype, axes=2, name="output")(join_blocks(mixed)), own


class Mlp(nn.Module):
    config: DecoderConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_MxD: Array) -> Array:
        def linear(name: str, width: int) -> Linear:
            return Linear((width,), self.dtype, name=name)

        gate = ACTIVATIONS[self.config.activation](linear("gate", self.config.mlp_width)(x_MxD))
        return linear("down", self.config.width)(gate * linear("up", self.config.mlp_width)(x_MxD))


class Layer(nn.Module):
    config: DecoderConfig
    dtype: jnp.dtype
    kernel: Kernel

    @nn.compact
    def __call__(
        self,
        x_MxD: Array,
        cache: LayerCache,
        sliding: Array,
        blocks: tuple[Block, ...],
        full: tuple[View, ...],
        near: tuple[View, ...] | None,
    ) -> tuple[Array, LayerCache]:
        """`full` is what full layers see of each block, and `near` what sliding ones do, where the decoder has some."""

        def norm(name: str) -> RmsNorm:
            return RmsNorm(self.config, self.dtype, name=name)

        views = full
        if near is not None:
            views = jax.tree.map(lambda full, near: jnp.where(sliding, near, full), full, near)
        attention = Attention(self.config, self.dtype, self.kernel, name="attention")
        mixed, own = attention(norm("attention_norm")(x_MxD), cache, blocks, views)
        if self.config.post_norms:
            mixed = norm("attention_post_norm")(mixed)
        x_MxD = x_MxD + mixed
        mixed = Mlp(self.config, self.dtype, name="mlp")(norm("mlp_norm")(x_MxD))
        if self.config.post_norms:
            mixed = norm("mlp_post_norm")(mixed)
        return x_MxD + mixed, own


_REMAT: dict[str, Callable[[type[nn.Module]], Any]] = {
    "none": lambda layer: layer,
    # What remains are the linear maps' results: the products of attention have batch axes.
    "dots": partial(
        nn.remat,
        prevent_cse=False,
        policy=jax.checkpoint_policies.save_from_both_policies(
            jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            jax.checkpoint_policies.save_only_these_names(PRODUCT),
        ),
    ),
    "full": partial(nn.remat, prevent_cse=False),
}


class DecoderModule(nn.Module):
    config: DecoderConfig
    dtype: jnp.dtype
    remat: Remat
    kernel: Kernel

    @nn.compact
    def __call__(
        self, blocks: tuple[Block, ...], cache: tuple[KeyValues, ...]
    ) -> tuple[list[Array], tuple[KeyValues, ...]]:
        c = self.config
        shape = (c.vocabulary, c.width)
        table_VxD = whole(parameter(self, "embedding", _TABLE, shape), shape, self.dtype)
        if not c.tied:
            parameter(self, "unembedding", _TABLE, shape)
        tokens_M = join_blocks([block.tokens_BxL for block in blocks])
        x_MxD = table_VxD[tokens_M].astype(self.dtype) * jnp.asarray(c.embedding_scale, self.dtype)
        near = tuple(self._near(block, blocks[0], cache) for block in blocks) if any(c.sliding) else None
        # One compiled layer, scanned over stacked parameters: compile time does not grow with depth.
        stack = nn.scan(
            _REMAT[self.remat](Layer),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.layers,
        )
        x_MxD, own = stack(c, self.dtype, self.kernel, name="layers")(
            x_MxD,
            tuple((segment.keys, segment.values) for segment in cache),
            jnp.asarray(c.sliding or (False,) * c.layers),
            blocks,
            tuple(View(self._angles(block, c.rope), self._full(block)) for block in blocks),
            near,
        )
        hidden = split_blocks(RmsNorm(c, self.dtype, name="final_norm")(x_MxD), blocks)
        return hidden, tuple(
            KeyValues(keys, values, block.positions_BxL) for (keys, values), block in zip(own, blocks, strict=True)
        )

    def _angles(self, block: Block, rope: Rope) -> tuple[Array, Array]:
        return rotary_angles(block.positions_BxL, self.config.head_size, rope)

    def _full(self, block: Block) -> Mask:
        """What full layers see of a block; beside sliding ones in the same shape as those."""
        return dense(block.mask, block.tokens_BxL.shape[1]) if any(self.config.sliding) else block.mask

    def _near(self, block: Block, first: Block, cache: tuple[KeyValues, ...]) -> View:
        """What sliding layers see of a block."""
        before = [segment.positions_BxL for segment in cache]
        if block.behind_B is not None:
            before.append(first.positions_BxL[block.behind_B])
        seen_BxS = jnp.concatenate([*before, block.positions_BxL], axis=1)
        mask = dense(block.mask, block.tokens_BxL.shape[1]) & within_window(
            block.positions_BxL, seen_BxS, self.config.window
        )
        return View(self._angles(block, self.config.sliding_rope), mask)


def join_blocks(parts: Sequence[Array]) -> Array:
    """The tokens of all blocks, [M, ...], of the [B, L, ...] of each."""
    return jnp.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])


def split_blocks(joined: Array, blocks: Sequence[Block]) -> list[Array]:
    """What `join_blocks` joined: [B, L, ...] of each block."""
    ends = list(accumulate(block.tokens_BxL.size for block in blocks))
    return [
        part.reshape(*block.tokens_BxL.shape, *joined.shape[1:])
        for part, block in zip(jnp.split(joined, ends[:-1]), blocks, strict=True)
    ]


@dataclass(frozen=True)
class Decoder:
    """A decoder's pure functions. Parameters are a nested dict of arrays, layers stacked.

    `dtype` is the compute dtype; `remat` says what the forward pass keeps for the backward pass; `kernel` is how rows
    that see many keys are computed where no layer slides (`long_attention.kernel_for`).
    """

    config: DecoderConfig
    dtype: jnp.dtype = jnp.dtype("float32")
    remat: Remat = "dots"
    kernel: Kernel = "plain"

    @property
    def _module(self) -> DecoderModule:
        return DecoderModule(self.config, self.dtype, self.remat, self.kernel)

    def init(self, rng: Array) -> Params:
        """Random parameters."""
        token = jnp.zeros((1, 1), jnp.int32)
        return self._module.init(rng, (Block(token, token, jnp.ones((1, 1, 1), bool)),), ())["params"]

    def forward(
        self,
        params: Params,
        tokens_BxL: Array,
        positions_BxL: Array,
        mask: Mask,
        cache: tuple[KeyValues, ...] = (),
    ) -> tuple[Array, KeyValues]:
        """Hidden states [B, L, D] after the final norm, and the keys and values of these tokens.

        Args:
          params: as from `init`.
          tokens_BxL, positions_BxL, mask: a `Block`; S counts the cache's segments in order, then L.
          cache: segments of earlier tokens.
        """
        outputs: Any = self._module.apply({"params": params}, (Block(tokens_BxL, positions_BxL, mask),), cache)
        (hidden_BxLxD,), (own,) = outputs
        return hidden_BxLxD, own

    def forward_blocks(self, params: Params, blocks: Sequence[Block]) -> tuple[list[Array], tuple[KeyValues, ...]]:
        """Hidden states [B, L, D] of each block after the final norm, and its keys and values.

        Rows of later blocks may go on from rows of the first, which is computed once for all of them.
        """
        outputs: Any = self._module.apply({"params": params}, tuple(blocks), ())
        hidden, own = outputs
        return hidden, own

    def unembed(self, params: Params, hidden: Array, token_ids: Array | None = None) -> Array:
        """Logits in float32: hidden [..., D] -> [..., V], or [..., len(token_ids)] of the chosen rows.

        Products are of the dtype of `hidden`.
        """
        table = params[self._unembedding]
        rows = table if token_ids is None else table[token_ids]
        rows = whole(rows.astype(hidden.dtype), (len(rows), self.config.width), hidden.dtype)
        precision = precision_of(hidden.dtype)
        logits = jnp.einsum("...d,vd->...v", hidden, rows, precision=precision, preferred_element_type=jnp.float32)
        return soft_cap(logits, self.config.logit_cap)

    def with_whole_tables(self, params: Params) -> Params:
        """The same parameters for a step that reads the embedding and all of the unembedding several times: inside a
        step mapped over `fsdp` these are gathered once."""
        shape = (self.config.vocabulary, self.config.width)
        names = dict.fromkeys(("embedding", self._unembedding))
        return params | {name: whole(params[name], shape, self.dtype) for name in names}

    @property
    def _unembedding(self) -> str:
        return "embedding" if self.config.tied else "unembedding"


_TABLE = nn.initializers.normal(0.02)
