"""Devices as one mesh with two axes, and where every array lies on it.

Both axes are mapped: a training step is written for one device, and `jax.shard_map` runs it on each slice of the
batch, whose rows are split over all devices. Parameters and optimizer state are split over `fsdp` by the table below,
and lie whole on every index of `data`. Inside a step a layer gathers the parameters that it needs (`model/parts.py`),
which is why nothing but parameters, gradients and metrics ever moves between devices. A parameter is split along its
width, which every family divides by small powers of two.
"""

import re
from collections.abc import Callable, Sequence
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

AXES = ("data", "fsdp")
ROWS = P(AXES)
"""How the rows of a batch lie: those of each device are its own."""
WHOLE = P()
"""How an array lies that each device has all of."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh `data` x `fsdp` over these devices; default: over all.

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = {"data": config.data, "fsdp": config.fsdp}
    for name, other in (("data", "fsdp"), ("fsdp", "data")):
        if sizes[name] == -1:
            sizes[name] = max(count // sizes[other], 1)
    if sizes["data"] * sizes["fsdp"] != count:
        raise InputError(
            f"config: mesh.data={config.data}, mesh.fsdp={config.fsdp}: there are {count} devices; "
            "make the product equal to that, or leave one at -1"
        )
    return jax.make_mesh((sizes["data"], sizes["fsdp"]), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def mesh_of(params: Any) -> Mesh:
    """The mesh that parameters lie on; that of the first device where they lie on none."""
    sharding = jax.tree.leaves(params)[0].sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh) and sharding.mesh.axis_names == AXES:
        return sharding.mesh
    return make_mesh(MeshConfig(), jax.local_devices()[:1])


def specs(mesh: Mesh, tree: Any) -> Any:
    """The PartitionSpec of every array of a tree of parameters, or of any state built on one (optimizer moments).

    An axis that `fsdp` does not divide stays whole.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> P:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = next((spec for pattern, spec in TABLE if re.search(pattern, name)), P())
        whole = any(axis and leaf.shape[i] % mesh.shape[axis] for i, axis in enumerate(spec))
        return P() if whole else spec

    return jax.tree_util.tree_map_with_path(place, tree)


def shardings(mesh: Mesh, tree: Any) -> Any:
    """The NamedSharding of every array of such a tree."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(mesh, tree))


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


def on_devices(mesh: Mesh, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` on each device, with the device's own parts of its arguments."""
    # What a device makes of replicated parameters and means is the same on all, which JAX cannot see by itself.
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def mean_over_devices(tree: Any) -> Any:
    """The mean of what all devices have, on each of them; inside a mapped function."""
    return lax.pmean(tree, AXES)


def mean_gradient(mesh: Mesh, gradient: Any, places: Any) -> Any:
    """The mean over devices of a gradient; inside a mapped function.

    Args:
      gradient: of each device, in its own parts of the parameters. Where a parameter was gathered over `fsdp`, the
        gradient of the gathering has summed over `fsdp` already.
      places: the parameters' `specs`.
    """

    def mean(leaf: jax.Array, spec: P) -> jax.Array:
        return lax.pmean(leaf, "data") / mesh.shape["fsdp"] if "fsdp" in spec else lax.pmean(leaf, AXES)

    return jax.tree.map(mean, gradient, places)


def own_rows(mesh: Mesh, rows: int) -> list[int]:
    """The rows of a batch that lie on the devices of this process, ascending.

    They need not be consecutive: the order of devices in a mesh follows the wires between them, not the hosts.
    """
    slices = NamedSharding(mesh, ROWS).addressable_devices_indices_map((rows,)).values()
    return sorted({row for index in slices if index for row in range(*index[0].indices(rows))})


def split_rows(mesh: Mesh, batch: Any) -> Any:
    """Places a batch of numpy arrays, the first axis of each split over all devices.

    Each process gives what belongs to its `own_rows` alone; an array may have several entries for each row.
    """
    sharding = NamedSharding(mesh, ROWS)
    own = len(sharding.addressable_devices)

    def place(array: np.ndarray) -> jax.Array:
        shape = (len(array) * mesh.size // own, *array.shape[1:])
        starts = sorted(_start(index) for index in sharding.addressable_devices_indices_map(shape).values())
        size = len(array) // own

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            number = starts.index(_start(index))
            return array[number * size : (number + 1) * size]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(place, batch)


def _start(index: tuple[slice, ...] | None) -> int:
    return (index[0].start or 0) if index else 0


def on_process_0(tree: Any) -> Any:
    """A tree of arrays whole on process 0, None elsewhere; each process makes this call.

    Where there are several processes, leaf by leaf comes to the host.
    """
    if jax.process_count() == 1:
        return tree

    def gathered(leaf: jax.Array) -> np.ndarray | None:
        whole = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(whole) if jax.process_index() == 0 else None

    whole = jax.tree.map(gathered, tree)
    return whole if jax.process_index() == 0 else None


def wait_for_all(what: str) -> None:
    """Returns once each process has made this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def largest(number: int) -> int:
    """The largest of all processes' numbers; each process makes this call."""
    return number if jax.process_count() == 1 else int(multihost_utils.process_allgather(np.array(number)).max())


def check_rows(mesh: Mesh, field: str, rows: int, parts: int = 1) -> None:
    """Refuses a batch size that the devices do not divide, or where the rows of each do not divide into parts."""
    unit = mesh.size * parts
    if rows % unit:
        nearest = max(round(rows / unit), 1) * unit
        over = f"{mesh.size} devices" + (f" x {parts} parts of {field.split('.')[0]}.accumulation" if parts > 1 else "")
        raise InputError(f"config: {field}={rows} does not divide over {over}; the nearest is {nearest}")
