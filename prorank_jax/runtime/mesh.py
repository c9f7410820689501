"""Devices as one mesh with two axes, and where every array lies on it.

`data` is mapped: a training step is written for one replica, and `jax.shard_map` runs it on each slice of the
batch. `fsdp` is sharded: parameters and optimizer state are split over it by the table below, and the compiler
places the collectives. A parameter is split along its width, which every family divides by small powers of two.
"""

import re
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from prorank_jax.config import MeshConfig
from prorank_jax.errors import InputError

TABLE = (
    (r"embedding$", P(None, "fsdp")),
    (r"attention/(query|key|value)/kernel$", P(None, "fsdp")),
    (r"attention/output/kernel$", P(None, None, None, "fsdp")),
    (r"mlp/(gate|up)/kernel$", P(None, "fsdp")),
    (r"mlp/down/kernel$", P(None, None, "fsdp")),
)
"""Path of a parameter -> the axes it is split over. What no row names is replicated (norms and biases)."""


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh `data` x `fsdp` over all devices.

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    sizes = {"data": config.data, "fsdp": config.fsdp}
    for name, other in (("data", "fsdp"), ("fsdp", "data")):
        if sizes[name] == -1:
            sizes[name] = max(devices // sizes[other], 1)
    if sizes["data"] * sizes["fsdp"] != devices:
        raise InputError(
            f"config: mesh.data={config.data}, mesh.fsdp={config.fsdp}: there are {devices} devices; "
            "make the product equal to that, or leave one at -1"
        )
    return jax.make_mesh((sizes["data"], sizes["fsdp"]), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def shardings(mesh: Mesh, tree: Any) -> Any:
    """The NamedSharding of every array of a tree of parameters, or of any state built on one (optimizer moments).

    An axis that `fsdp` does not divide stays whole.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = next((spec for pattern, spec in TABLE if re.search(pattern, name)), P())
        whole = any(axis and leaf.shape[i] % mesh.shape[axis] for i, axis in enumerate(spec))
        return NamedSharding(mesh, P() if whole else spec)

    return jax.tree_util.tree_map_with_path(place, tree)


def abstract(mesh: Mesh, tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree, without its values."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(mesh, tree),
    )


def keep_place(mesh: Mesh, state: Any) -> Any:
    """Holds a traced state to its shardings: left to itself the compiler splits what the table leaves whole, and
    the next step, whose input lies elsewhere, is compiled anew."""
    return lax.with_sharding_constraint(state, shardings(mesh, state))


def mean_over_replicas(mesh: Mesh, tree: Any) -> Any:
    """The mean over `data`, inside a step mapped over it.

    XLA cannot partition an all-reduce over an axis of one device beside a split one, and there is nothing to reduce.
    """
    return lax.pmean(tree, "data") if mesh.shape["data"] > 1 else tree


def own_rows(mesh: Mesh, rows: int) -> range:
    """The rows of a batch, split over `data`, that lie on the devices of this process."""
    slices = NamedSharding(mesh, P("data")).addressable_devices_indices_map((rows,)).values()
    bounds = [index[0].indices(rows) for index in slices if index]
    return range(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))


def split_rows(mesh: Mesh, batch: Any, rows: int | None = None) -> Any:
    """Places a batch of numpy arrays, the first axis of each split over `data`.

    Args:
      rows: where given, the rows of the whole batch, of which the arrays hold what belongs to `own_rows` alone; an
        array may have several entries for each row.
    """
    sharding = NamedSharding(mesh, P("data"))

    def place(array: np.ndarray) -> jax.Array:
        whole, first = len(array), 0
        if rows is not None:
            own = own_rows(mesh, rows)
            whole, first = (len(array) * bound // len(own) for bound in (rows, own.start))

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            start, stop, _ = index[0].indices(whole) if index else (first, first + len(array), 1)
            return array[start - first : stop - first]

        return jax.make_array_from_callback((whole, *array.shape[1:]), sharding, part)

    return jax.tree.map(place, batch)


def largest(number: int) -> int:
    """The largest of all processes' numbers; each process makes this call."""
    return number if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.array(number)).max())


def check_rows(mesh: Mesh, field: str, rows: int) -> None:
    """Refuses a batch size that the `data` axis does not divide."""
    replicas = mesh.shape["data"]
    if rows % replicas:
        nearest = max(round(rows / replicas), 1) * replicas
        raise InputError(f"config: {field}={rows} does not divide over {replicas} replicas; the nearest is {nearest}")
