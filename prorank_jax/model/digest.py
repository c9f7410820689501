"""A digest of a model's parameters that leaves no copy of them on the host."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax import Array

from prorank_jax.ahead import cpus
from prorank_jax.model.decoder import Params

BLOCK_BYTES = 1 << 24
"""Of a parameter that are hashed at once."""


def params_digest(params: Params) -> bytes:
    """SHA-256 of every path and value of the tree, parameter by parameter, computed by all CPUs."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor(cpus(), thread_name_prefix="digest") as pool:
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            digest.update(jax.tree_util.keystr(path).encode())
            for of_block in pool.map(_sha256, _blocks(leaf)):
                digest.update(of_block)
    return digest.digest()


def _blocks(leaf: Array) -> Iterator[memoryview]:
    """The bytes of a parameter, some at a time."""
    # An array keeps what it was copied to on the host. This one, of the same buffers, is gone after this call.
    shards = [shard.data for shard in leaf.addressable_shards]
    alias = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)
    whole = np.ascontiguousarray(alias).reshape(-1).view(np.uint8)
    for start in range(0, len(whole), BLOCK_BYTES):
        yield whole[start : start + BLOCK_BYTES].data


def _sha256(block: memoryview) -> bytes:
    return hashlib.sha256(block).digest()
