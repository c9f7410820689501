"""Groups of documents as arrays: what the prompts of a query have in common stands once, and little is padding.

Prompts of one query begin with the same tokens: the task and, where the query comes first, the query. A causal
decoder sees nothing of what follows, so these tokens need computing once for the whole group, and exactly so.
Widths are rounded up to a few sizes, so that a step is compiled for few shapes.
"""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from prorank_jax.data.examples import Group
from prorank_jax.data.loader import encode, pad_prompts, padded_length
from prorank_jax.prompt import Prompt

_SIZES = 4
"""Widths between one power of two and the next: a fifth of one is padding at most."""

A = TypeVar("A")
"""numpy arrays on the host, JAX arrays on devices."""


class GroupPrompts(NamedTuple, Generic[A]):
    """Right-padded prompts of Q queries with C documents each, int32: what the C have in common, and the rest of each.

    `[5, 6, 7]` and `[5, 6, 8, 9]` are the prefix `[5, 6]` and the rests `[7, 0]` and `[8, 9]`. The prefix has no
    columns where sharing does not pay. A rest has one token at least, so that each has a last place.
    """

    prefix_QxP: A
    prefix_lengths_Q: A
    rest_QxCxL: A
    rest_lengths_QxC: A


class GroupBatch(NamedTuple, Generic[A]):
    """Prompts of Q queries with C documents each, float32 labels to learn, and a mask that is False where a group has
    no document; there the rest is one token of padding."""

    prompts: GroupPrompts[A]
    labels_QxC: A
    mask_QxC: A


def group_batch(groups: Sequence[Group], prompt: Prompt, documents: int) -> GroupBatch[np.ndarray]:
    """The groups as arrays of C = `documents`, with the widths P and L that take the fewest tokens."""
    rows = [(group.query, document, group.instruction) for group in groups for document in group.documents]
    ids = iter(encode(prompt, rows))
    prompts = [[next(ids) for _ in group.documents] for group in groups]
    labels_QxC = np.zeros((len(groups), documents), np.float32)
    mask_QxC = np.zeros((len(groups), documents), bool)
    for row, group in enumerate(groups):
        labels_QxC[row, : len(group.targets)] = group.targets
        mask_QxC[row, : len(group.documents)] = True
    return GroupBatch(share(prompts, documents, prompt.max_length, prompt.pad_id), labels_QxC, mask_QxC)


def share(
    prompts: Sequence[Sequence[list[int]]], documents: int, longest: int, pad_id: int
) -> GroupPrompts[np.ndarray]:
    """Cuts each group's prompts behind what they have in common, where that makes fewer tokens to compute.

    Args:
      prompts: the ids of each group's prompts, `documents` of them at most.
      longest: tokens of a prompt at most.
    """
    common = [_common(group) for group in prompts]

    def widths(limit: int) -> tuple[int, int]:
        cut = [min(length, limit) for length in common]
        rest = max((len(ids) - at for group, at in zip(prompts, cut, strict=True) for ids in group), default=1)
        return padded_length(max(cut, default=0), longest, _SIZES), padded_length(rest, longest, _SIZES)

    # A group that has more in common than the others would widen the prefix of all, hence a limit.
    found = {limit: widths(limit) for limit in sorted({0, *common})}
    best = min(found, key=lambda limit: found[limit][0] + documents * found[limit][1])
    P, L = found[best]
    cut = [min(length, best) for length in common]
    rest_QxCxL = np.full((len(prompts), documents, L), pad_id, np.int32)
    rest_lengths_QxC = np.ones((len(prompts), documents), np.int32)
    for row, (group, at) in enumerate(zip(prompts, cut, strict=True)):
        rest_QxCxL[row, : len(group)], rest_lengths_QxC[row, : len(group)] = pad_prompts(
            [ids[at:] for ids in group], L, pad_id
        )
    prefix_QxP, prefix_lengths_Q = pad_prompts(
        [group[0][:at] if group else [] for group, at in zip(prompts, cut, strict=True)], P, pad_id
    )
    return GroupPrompts(prefix_QxP, prefix_lengths_Q, rest_QxCxL, rest_lengths_QxC)


def agreed(batch: GroupBatch[np.ndarray], pad_id: int) -> GroupBatch[np.ndarray]:
    """The same batch, as wide as the widest of all processes; each of them makes this call."""
    prompts = batch.prompts
    widths = np.array([prompts.prefix_QxP.shape[1], prompts.rest_QxCxL.shape[2]])
    if jax.process_count() > 1:
        widths = multihost_utils.process_allgather(widths).reshape(-1, 2).max(axis=0)

    def pad(array: np.ndarray, width: int) -> np.ndarray:
        more = [(0, 0)] * (array.ndim - 1) + [(0, int(width) - array.shape[-1])]
        return np.pad(array, more, constant_values=pad_id)

    prefix_QxP, rest_QxCxL = pad(prompts.prefix_QxP, widths[0]), pad(prompts.rest_QxCxL, widths[1])
    return batch._replace(prompts=prompts._replace(prefix_QxP=prefix_QxP, rest_QxCxL=rest_QxCxL))


def prompt_tokens(batch: GroupBatch[np.ndarray]) -> int:
    """Tokens of all prompts, those in common counted for each document."""
    prompts = batch.prompts
    whole_QxC = prompts.rest_lengths_QxC + prompts.prefix_lengths_Q[:, None]
    return int(whole_QxC[batch.mask_QxC].sum())


def _common(prompts: Sequence[list[int]]) -> int:
    """Tokens at the start that all prompts share, and that leave each of them one.

    `_common([[5, 6, 7], [5, 6, 8, 9]])` is 2, `_common([[5, 6]])` is 1.
    """
    if not prompts:
        return 0
    shortest = min(len(ids) for ids in prompts)
    rows = np.array([ids[:shortest] for ids in prompts])
    differs = np.flatnonzero((rows != rows[:1]).any(axis=0))
    return min(int(differs[0]) if differs.size else shortest, shortest - 1)
