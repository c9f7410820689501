"""float32 means float32.

By default a TPU multiplies matrices of float32 in bfloat16, and a GPU in TF32. Every product of the package names the
precision of its operands' dtype instead; the gradient of a product has the precision of the product.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike


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
