"""Parameters in parts: inside a step mapped over `fsdp` a device holds a part of every matrix along one axis.

Where the whole is needed it is gathered, in the compute dtype so that fewer bytes move, and the gradient of that is
each device's part of the sum. What a layer gathers lives as long as the layer does: under rematerialisation it is
gathered again for the backward pass.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

AXIS = "fsdp"
Init = Callable[..., Array]


def parameter(module: nn.Module, name: str, init: Init, shape: tuple[int, ...]) -> Array:
    """A module's parameter of this shape, whole or in part; made where there is none yet."""
    if module.has_variable("params", name):
        found: Array = module.get_variable("params", name)
        return found
    return module.param(name, init, shape)


def whole(part: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """The parameter of this shape of which a device holds a part; what is whole already comes back as it is.

    A part [4, 6] of a parameter [16, 6] is one of four along the first axis.
    """
    split = [axis for axis, size in enumerate(shape) if part.shape[axis] != size]
    for axis in split:
        part = lax.all_gather(part.astype(dtype), AXIS, axis=axis, tiled=True)
    return part


def anywhere(flag: Array) -> Array:
    """Whether a flag is set on any of the devices that gather parameters together.

    These must go through a loop equally often: one that left it early would leave the others waiting for its part.
    """
    if AXIS not in jax.sharding.get_abstract_mesh().manual_axes:
        return flag
    return lax.pmax(flag.astype(jnp.int32), AXIS) > 0
