"""Attention whose memory grows with the length of a row and not with its square: JAX's splash attention for TPUs.

The kernel (jax.experimental.pallas.ops.tpu.splash_attention) goes over blocks of queries and keys, keeps a running
softmax (FlashAttention, arXiv 2205.14135), and leaves out the blocks that lie ahead. Heads stay grouped. Its backward
pass computes the products again. Masks that are not causal, as those of layers with a sliding window, are computed by
`attention.attend`.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
from jax.sharding import Mesh

from prorank_jax.model.attention import Causal, Mask, attend
from prorank_jax.model.precision import precision_of, with_precision
from prorank_jax.model.row_attention import attend_by_rows

Kernel = Literal["plain", "splash", "rows"]
"""How attention is computed: all at once, or where there are many keys by TPU kernels, or row by row."""

LONG = 1024
"""Keys from which the kernel is worth its blocks; shorter rows fit in memory as they are."""
_LANES = 128
_BLOCK = 512
"""Queries and keys of a block: large enough to keep the matrix unit busy, small enough for the chip's fast memory."""


def kernel_for(mesh: Mesh) -> Kernel:
    """What the devices of a mesh can compute."""
    return "splash" if mesh.devices.flat[0].platform == "tpu" else "plain"


def scoring_kernel(mesh: Mesh) -> Kernel:
    """What is best where no gradient is wanted; row by row, a gradient would keep every block."""
    return "rows" if mesh.devices.flat[0].platform == "cpu" else kernel_for(mesh)


def suits(kernel: Kernel, mask: Mask, length: int) -> bool:
    """Whether rows of so many tokens are for `attend_long`: many keys, and no mask but a causal one."""
    return kernel == "splash" and isinstance(mask, Causal) and mask.valid_BxS.shape[1] >= LONG and length >= _LANES


def attend_by(
    kernel: Kernel,
    query_BxLxNxH: Array,
    keys: Sequence[Array],
    values: Sequence[Array],
    mask: Mask,
    scale: float,
    cap: float | None,
) -> Array:
    """Attention by the one of both that suits the rows; the other arguments are those of `attention.attend`."""
    if kernel == "rows":
        return attend_by_rows(query_BxLxNxH, keys, values, mask, scale, cap)
    if isinstance(mask, Causal) and suits(kernel, mask, query_BxLxNxH.shape[1]):
        return attend_long(query_BxLxNxH, keys, values, mask, scale, cap)
    return attend(query_BxLxNxH, keys, values, mask, scale, cap)


def attend_long(
    query_BxLxNxH: Array,
    keys: Sequence[Array],
    values: Sequence[Array],
    mask: Causal,
    scale: float,
    cap: float | None = None,
    *,
    interpret: bool = False,
) -> Array:
    """`attention.attend` of a causal mask, computed block by block.

    Args:
      interpret: run the kernel on any device, slowly.
    """
    L, N = query_BxLxNxH.shape[1:3]
    S = mask.valid_BxS.shape[1]
    block_q, block_kv = _block(L), _block(S)
    query = _padded(query_BxLxNxH * scale, block_q)
    key, value = (_padded(jnp.concatenate(list(parts), axis=1), block_kv) for parts in (keys, values))
    # Padding is a segment of its own, which no query belongs to. Each query sees one key at least, its row's first.
    seen_BxS = _padded(mask.valid_BxS.astype(jnp.int32), block_kv)
    sizes = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
    shape = query.shape[1], key.shape[1]
    ahead = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask(shape, offset=S - L)] * N)
    # The library mixes dtypes and ranks where ours may not.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        attend = splash.make_splash_mha(
            ahead, block_sizes=sizes, head_shards=1, q_seq_shards=1, attn_logits_soft_cap=cap, interpret=interpret
        )
        segments = splash.SegmentIds(jnp.ones(query.shape[:2], jnp.int32), seen_BxS)
        heads = [heads.transpose(0, 2, 1, 3) for heads in (query, key, value)]
        precise = with_precision(precision_of(query.dtype), lambda kernel, *rows: jax.vmap(kernel)(*rows))
        out = precise(attend, *heads, segments)
    return out.transpose(0, 2, 1, 3)[:, :L].astype(values[0].dtype)


def _block(length: int) -> int:
    return min(-(-length // _LANES) * _LANES, _BLOCK)


def _padded(x: Array, block: int) -> Array:
    """With zeros behind axis 1, up to whole blocks."""
    more = -x.shape[1] % block
    return jnp.pad(x, [(0, more if axis == 1 else 0) for axis in range(x.ndim)])
