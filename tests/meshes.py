"""Meshes of the tests' virtual devices, and what runs on them compared."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

MESHES = [(8, 1), (2, 4), (1, 8)]
"""Sizes of `data` and `fsdp`."""


def mesh_of(data, fsdp):
    """The first `data * fsdp` devices."""
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def close(left, right):
    """Two trees agree to 1e-5."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5), left, right)
