"""Named random streams: what is drawn depends on the seed and on the name of who draws, and not on what others draw.

    jax.random.uniform(key(seed, "score/adapters"))
    np.random.default_rng(sequence(seed, "data/pairs", number))

Every draw that a user's seed decides begins here, each under a name of its own: two streams never share their numbers.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jax import Array


def key(seed: int, name: str) -> "Array":
    """The stream's key for JAX; further ones are folded into it."""
    import jax  # takes a second, and reading data needs none

    return jax.random.fold_in(jax.random.key(seed), np.uint32(_number_of(name)))


def sequence(seed: int, name: str, *numbers: int) -> np.random.SeedSequence:
    """The stream's seed for NumPy; each tuple of numbers is a stream within the stream."""
    # Appended to the seed itself, a 0 would change nothing.
    return np.random.SeedSequence((seed, _number_of(name)), spawn_key=numbers)


def _number_of(name: str) -> int:
    """32 bits of a name, the same in every process, which Python's own `hash` is not."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
