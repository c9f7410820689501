"""float32 means float32, and what has 16 bits adds up in it.

By default a TPU multiplies matrices of float32 in bfloat16, and a GPU in TF32. Every product of the package names the
precision of its operands' dtype instead; the gradient of a product has the precision of the product.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

PRODUCT = "product"
"""Name of a wide product's result, by which rematerialisation may keep it."""


def precision_of(dtype: DTypeLike) -> lax.Precision | None:
    """The `precision` of products of operands of this dtype: every bit of float32; others are exact by default."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def with_precision(precision: lax.Precision | None, function: Callable[..., Array]) -> Callable[..., Array]:
    """A library's function that names no precision, with this one in its products and in those of its gradient.

    All arrays that it reads are arguments: what it closed over would leak out of the trace of a layer.
    """
    if precision is None:
        return function

    @jax.custom_vjp
    def precise(*arguments: Any) -> Array:
        with jax.default_matmul_precision(precision.name.lower()):
            return function(*arguments)

    def forward(*arguments: Any) -> tuple[Array, Any]:
        with jax.default_matmul_precision(precision.name.lower()):
            return jax.vjp(function, *arguments)

    def backward(pull_back: Any, gradient: Array) -> Any:
        with jax.default_matmul_precision(precision.name.lower()):
            return pull_back(gradient)

    precise.defvjp(forward, backward)
    return precise


@jax.custom_vjp
def wide_product(x_MxI: Array, kernel_IxO: Array) -> Array:
    """`x @ kernel` in the dtype of `x`, of 16 bits, with sums in float32, as accelerators make them.

    The gradient of the kernel is in the kernel's own dtype, so that of a float32 parameter loses nothing to rounding.
    A CPU that multiplies bfloat16 (AVX512-BF16, AMX) does so only where sums are asked for in float32.
    """
    return _sum_in_float32(x_MxI, kernel_IxO.astype(x_MxI.dtype), ((1,), (0,))).astype(x_MxI.dtype)


def _wide_forward(x_MxI: Array, kernel_IxO: Array) -> tuple[Array, tuple[Array, Array]]:
    # Kept as bits: a CPU has no bfloat16 of its own, and would make float32 of a whole stack of layers to write one.
    kept = lax.bitcast_convert_type(wide_product(x_MxI, kernel_IxO), jnp.uint16)
    return lax.bitcast_convert_type(checkpoint_name(kept, PRODUCT), x_MxI.dtype), (x_MxI, kernel_IxO)


def _wide_backward(kept: tuple[Array, Array], gradient_MxO: Array) -> tuple[Array, Array]:
    x_MxI, kernel_IxO = kept
    of_x = _sum_in_float32(gradient_MxO, kernel_IxO.astype(x_MxI.dtype), ((1,), (1,)))
    # With a second axis of rows: else a CPU computes this product in float32, which takes it twice as long.
    of_kernel = _sum_in_float32(x_MxI[:, None], gradient_MxO[:, None], ((0, 1), (0, 1)))
    return of_x.astype(x_MxI.dtype), of_kernel.astype(kernel_IxO.dtype)


wide_product.defvjp(_wide_forward, _wide_backward)


def _sum_in_float32(left: Array, right: Array, axes: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    return lax.dot_general(left, right, (axes, ((), ())), preferred_element_type=jnp.float32)


def product(x_MxI: Array, kernel_IxO: Array) -> Array:
    """`x @ kernel` in the dtype of `x`; the kernel may be of float32."""
    if x_MxI.dtype == jnp.float32:
        return jnp.matmul(x_MxI, kernel_IxO.astype(jnp.float32), precision=precision_of(jnp.float32))
    return wide_product(x_MxI, kernel_IxO)
