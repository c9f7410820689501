"""Scores of many prompts, of which what several have in common is computed once.

A causal decoder sees nothing of what follows. So the beginning that all prompts of a query share (template, instruction
and query) is computed once, kept as keys and values, and attended to by what is left of each prompt. Both are padded to
one of a few widths, chosen by their own length alone: what else is scored at the same time changes which rows share a
batch, and nothing in how a row is computed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from prorank_jax.data.loader import pad_prompts
from prorank_jax.model.attention import causal
from prorank_jax.model.decoder import Decoder, KeyValues, Params
from prorank_jax.model.prefix import prefill
from prorank_jax.model.row_attention import each_row
from prorank_jax.prompt import PromptParts
from prorank_jax.runtime.mesh import AXES, ROWS, WHOLE, on_devices, specs
from prorank_jax.scoring.scores import answer_margin

_NARROWEST = 16
PREFIX_WIDTHS = 2
"""Widths to an octave of what is shared. Fewer than of the rests, which are compiled for each of these."""
BEHIND_ROWS = P(None, AXES)
"""How keys and values [layers, B, ...] lie that rows go on from: each on the device of its row."""


class Rests(NamedTuple):
    """A batch of what is left of prompts behind what they share, int32.

    Attributes:
      places: of the prompts in the list given; the batch may have rows more, copies of its last.
      prefixes_B: the row of the shared beginning that each goes on from.
      starts_B: the tokens of that beginning.
    """

    places: list[int]
    prefixes_B: np.ndarray
    starts_B: np.ndarray
    tokens_BxL: np.ndarray
    lengths_B: np.ndarray


class Unit(NamedTuple):
    """Shared beginnings, and the batches that go on from them."""

    prefix_QxP: np.ndarray
    lengths_Q: np.ndarray
    batches: list[Rests]


class Scorer(NamedTuple):
    """The compiled functions of a decoder on the devices of a mesh, which divide the rows B.

    Attributes:
      begin: `(params, prefix_QxP, lengths_Q)` -> keys and values, on each device.
      spread: `(begun, prefixes_B)` -> those that each row goes on from, split over the devices. By itself, so that
        `score`, which takes long to compile, is the same for any number of beginnings.
      score: `(params, before, starts_B, tokens_BxL, lengths_B)` -> float32 [B], on each device, of rows that go on from
        so many tokens of `before`.
    """

    begin: Callable[[Params, Any, Any], KeyValues]
    spread: Callable[[KeyValues, Any], KeyValues]
    score: Callable[[Params, KeyValues, Any, Any, Any], Array]


def make_scorer(decoder: Decoder, answer_ids: tuple[int, int], mesh: Mesh) -> Scorer:
    """Compiles when called, for each shape once."""
    one: Any = BEHIND_ROWS
    rows: Any = ROWS
    behind = KeyValues(one, one, rows)

    def begin_here(params: Params, prefix_QxP: Array, lengths_Q: Array) -> KeyValues:
        return prefill(decoder, params, prefix_QxP, lengths_Q).cache

    def begin_share(params: Params, prefix_QxP: Array, lengths_Q: Array) -> KeyValues:
        own = begin_here(params, prefix_QxP, lengths_Q)
        # In one collective: several that do not depend on each other may be taken in different orders.
        keys, values = lax.all_gather(jnp.stack([own.keys, own.values]), AXES, axis=2, tiled=True)
        Q, prefix = keys.shape[1:3]
        return KeyValues(keys, values, jnp.broadcast_to(jnp.arange(prefix), (Q, prefix)))

    @jax.jit
    def begin(params: Params, prefix_QxP: Array, lengths_Q: Array) -> KeyValues:
        Q, width = prefix_QxP.shape
        shared = Q % mesh.size == 0 and Q // mesh.size * width >= least_tokens(decoder)
        function, rows = (begin_share, ROWS) if shared else (begin_here, WHOLE)
        begun: KeyValues = on_devices(mesh, function, (specs(mesh, params), rows, rows), WHOLE)(
            params, prefix_QxP, lengths_Q
        )
        return begun

    @jax.jit
    def spread(begun: KeyValues, prefixes_B: Array) -> KeyValues:
        return on_devices(mesh, KeyValues.rows, (WHOLE, ROWS), behind)(begun, prefixes_B)

    def score_here(params: Params, before: KeyValues, starts_B: Array, tokens_BxL: Array, lengths_B: Array) -> Array:
        L, prefix = tokens_BxL.shape[1], before.positions_BxL.shape[1]
        hidden_BxLxD, _ = decoder.forward(
            params,
            tokens_BxL,
            starts_B[:, None] + jnp.arange(L)[None],
            causal(lengths_B, L, jnp.arange(prefix)[None] < starts_B[:, None]),
            (before,),
        )
        last_BxD = jnp.take_along_axis(hidden_BxLxD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
        # Of each row alone: a product of matrices adds up in another order where there are few rows.
        scores_B = each_row(lambda last_D: answer_margin(decoder, params, last_D, answer_ids), last_BxD)
        return lax.all_gather(scores_B, AXES, tiled=True)

    @jax.jit
    def score(params: Params, before: KeyValues, starts_B: Array, tokens_BxL: Array, lengths_B: Array) -> Array:
        places = (specs(mesh, params), behind, ROWS, ROWS, ROWS)
        scores_B: Array = on_devices(mesh, score_here, places, WHOLE)(params, before, starts_B, tokens_BxL, lengths_B)
        return scores_B

    return Scorer(begin, spread, score)


def least_tokens(decoder: Decoder) -> int:
    """Tokens of a batch on each device, with fewer of which a CPU adds up products and squares in another order."""
    return max(64, 4096 // decoder.config.width)


def most_tokens(mesh: Mesh) -> int:
    """Tokens of a batch on each device from which on products of matrices become no faster."""
    return 1024 if mesh.devices.flat[0].platform == "cpu" else 8192


def tokens_for(decoder: Decoder, mesh: Mesh, free: int) -> int:
    """Tokens of a batch on each device, with so many free bytes: a power of two, such that activations and the keys and
    values gone on from take a quarter of them at most."""
    c = decoder.config
    activations = 3 * c.mlp_width + 8 * c.width + 4 * c.heads * c.head_size
    of_token = (activations + 4 * c.layers * c.kv_heads * c.head_size) * decoder.dtype.itemsize
    return min(max(_power_of_two(max(free // 4 // of_token, 1)), least_tokens(decoder)), most_tokens(mesh))


def arrange(
    prompts: Sequence[PromptParts], pad_id: int, devices: int, tokens: tuple[int, int], rows: int | None
) -> Iterator[Unit]:
    """Batches in which each prompt lies once, and little is padding.

    Args:
      tokens: of a batch on each device, at least and at most; one prompt may have more.
      rows: prompts of a batch at most.
    """
    places = defaultdict(list)
    for place, prompt in enumerate(prompts):
        places[prompt.shared].append(place)
    widths = defaultdict(list)
    for shared in places:
        widths[tight_width(len(shared), PREFIX_WIDTHS)].append(shared)
    for width, all_shared in sorted(widths.items()):
        together = _power_of_two(max(tokens[1] // width, 1))
        for start in range(0, len(all_shared), together):
            some = all_shared[start : start + together]
            # In quarters, as the batches have it: shapes are few.
            least = -(-tokens[0] // width)
            count = max(together, least)
            while count // 4 >= max(len(some), least):
                count //= 4
            prefix_QxP, lengths_Q = pad_prompts(some + some[-1:] * (count - len(some)), width, pad_id)
            rests = [(place, row, prompts[place].own) for row, shared in enumerate(some) for place in places[shared]]
            yield Unit(prefix_QxP, lengths_Q, list(_batches(rests, lengths_Q, pad_id, devices, tokens, rows)))


def _batches(
    rests: list[tuple[int, int, list[int]]],
    lengths_Q: np.ndarray,
    pad_id: int,
    devices: int,
    tokens: tuple[int, int],
    rows: int | None,
) -> Iterator[Rests]:
    widths = defaultdict(list)
    for rest in rests:
        widths[tight_width(len(rest[2]))].append(rest)
    for width, of_width in sorted(widths.items(), reverse=True):
        start = 0
        for size in _sizes(len(of_width), width, devices, tokens, rows):
            some = of_width[start : start + size]
            start += len(some)
            filled = some + some[-1:] * (size - len(some))
            prefixes_B = np.array([row for _, row, _ in filled], np.int32)
            tokens_BxL, lengths_B = pad_prompts([ids for _, _, ids in filled], width, pad_id)
            yield Rests([place for place, _, _ in some], prefixes_B, lengths_Q[prefixes_B], tokens_BxL, lengths_B)


def _sizes(count: int, width: int, devices: int, tokens: tuple[int, int], rows: int | None) -> Iterator[int]:
    """Rows of the batches for so many prompts: the most there is room for, then quarters of that, so that there are few
    sizes and only the last batch has rows to spare."""
    least = devices * -(-tokens[0] // width)
    size = max(devices * _power_of_two(max(tokens[1] // width, 1)), least)
    if rows is not None:
        size = max(min(size, devices * _power_of_two(max(rows // devices, 1))), least)
    while count > 0:
        while size > count and size // 4 >= least:
            size //= 4
        yield size
        count -= size


def tight_width(length: int, to_an_octave: int = 4) -> int:
    """The width to pad to: 16, 24, ... 64, 80, ... 128, 160, ..., so many of them to an octave, or steps of 8.

    `tight_width(33)` is 40 and `tight_width(33, 2)` 48, `tight_width(129)` is 160.
    """
    step = max((1 << (length - 1).bit_length()) // (2 * to_an_octave), 8)
    return max(-(-length // step) * step, _NARROWEST)


def _power_of_two(number: int) -> int:
    """The largest that is not more."""
    return 1 << (number.bit_length() - 1)
