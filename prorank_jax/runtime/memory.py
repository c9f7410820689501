"""How much memory is free on the devices."""

import os
from pathlib import Path

from jax.sharding import Mesh


def free_bytes(mesh: Mesh) -> int:
    """Bytes that are free on each device of this process; those of the machine are shared by its CPU devices."""
    device = mesh.local_devices[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats["bytes_in_use"])
    return _available() // len(mesh.local_devices)


def _available() -> int:
    """Of the machine, without swapping; where Linux does not tell, half of what there is."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
