"""Cloud TPU chips, and devices of a topology that need not be there: libtpu describes and compiles for all of them."""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import jax

from prorank_jax.errors import InputError


class Generation(NamedTuple):
    """A chip: its memory in GiB and its peak in bfloat16 in TFLOP/s, by Google's system architecture pages.

    `accelerator` is a name that libtpu knows the generation by, `shapes` the slices that `prorank plan` takes.
    """

    memory: float
    peak: float
    accelerator: str
    shapes: tuple[str, ...]


GENERATIONS = {
    "v4": Generation(32, 275, "v4-8", ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8")),
    "v5e": Generation(16, 197, "v5litepod-8", ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
    "v5p": Generation(95, 459, "v5p-8", ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8")),
    "v6e": Generation(32, 918, "v6e-8", ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")),
}


class Topology(NamedTuple):
    """A slice: its name, the generation of its chips, and their devices, one a chip."""

    name: str
    generation: Generation
    devices: Sequence[jax.Device]


def open_topology(name: str) -> Topology:
    """The slice of a name as `v5e:2x4`.

    Raises:
      InputError: a name that is not known, or no libtpu to ask.
    """
    generation, _, shape = name.partition(":")
    if generation not in GENERATIONS or shape not in GENERATIONS[generation].shapes:
        known = "; ".join(f"{name}:{', '.join(made.shapes)}" for name, made in GENERATIONS.items())
        raise InputError(f"--topology={name}: not known; use GENERATION:SHAPE of {known}")
    if find_spec("libtpu") is None:
        raise InputError(
            "prorank plan: libtpu, the compiler for TPUs, is not installed; pip install 'prorank_jax[tpu]'"
        )
    made = GENERATIONS[generation]
    # It reads them when it is loaded: what to compile for, and that there is no machine to ask about it.
    os.environ.update(
        TPU_ACCELERATOR_TYPE=made.accelerator,
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_SKIP_MDS_QUERY="1",
        # Compilers may share a machine, as users of a chip may not.
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    from jax.experimental import topologies

    described = topologies.get_topology_desc(platform="tpu", topology_name=name)
    # Where a chip has two cores that work as one, JAX on a machine shows one device of them; the description has both.
    devices = [device for device in described.devices if getattr(device, "core_on_chip", 0) == 0]
    return Topology(name, made, devices)


def bytes_of(amount: float) -> str:
    """Bytes for people: `2.00 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.2f} GiB"


def exceeded(message: str) -> tuple[float, float] | None:
    """GiB used and there, of what XLA says where a program does not fit; None where it says something else.

    It has two ways to say so; one counts temporary memory only.
    """
    size = r"([\d.]+)([KMGT])"
    found = re.search(rf"Used {size} of {size}|\({size}\) exceeds available HBM \({size}\)", message)
    if found is None:
        return None
    used, used_unit, there, there_unit = [part for part in found.groups() if part]
    scale = {"K": 2.0**-20, "M": 2.0**-10, "G": 1.0, "T": 2.0**10}
    return float(used) * scale[used_unit], float(there) * scale[there_unit]
