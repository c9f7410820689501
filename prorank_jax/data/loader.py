"""Examples as arrays: prompts tokenised and padded on the right to one length.

Every batch of a stage has the same shape, so that its step is compiled once.
"""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from prorank_jax.data.examples import Groups, Pairs
from prorank_jax.errors import InputError
from prorank_jax.prompt import Prompt

A = TypeVar("A")
"""numpy arrays on the host, JAX arrays on devices."""


class PairBatch(NamedTuple, Generic[A]):
    """Prompts with the right answer to each: int32 arrays, P prompts of L tokens."""

    tokens_PxL: A
    lengths_P: A
    labels_P: A


class GroupBatch(NamedTuple, Generic[A]):
    """Prompts in groups: Q queries with N documents each.

    Tokens and lengths are int32, labels float32; the mask is False where a group has no document,
    whose tokens are all padding and whose length is 1, so that it still has a last position.
    """

    tokens_QxNxL: A
    lengths_QxN: A
    labels_QxN: A
    mask_QxN: A


def pad_prompts(ids: Sequence[Sequence[int]], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads on the right.

    `pad_prompts([[5, 6], [7]], 3, 0)` is `[[5, 6, 0], [7, 0, 0]], [2, 1]`.

    Returns:
      tokens int32 `[B, length]` and lengths int32 `[B]`.

    Raises:
      ValueError: a prompt is longer than `length`.
    """
    lengths_B = np.array([len(prompt) for prompt in ids], np.int32)
    if len(ids) and lengths_B.max() > length:
        raise ValueError(f"a prompt of {lengths_B.max()} tokens does not fit length={length}; cut the prompts first")
    tokens_BxL = np.full((len(ids), length), pad_id, np.int32)
    for row, prompt in enumerate(ids):
        tokens_BxL[row, : len(prompt)] = prompt
    return tokens_BxL, lengths_B


def pair_batch(pairs: Pairs, prompt: Prompt, size: int, seed: int, step: int) -> PairBatch[np.ndarray]:
    """Batch `step` of the stream of pairs, L = `prompt.max_length`.

    Raises:
      InputError: a label is neither 0 nor 1.
    """
    texts, labels_P = pairs.batch(seed, step, size)
    if (wrong := np.flatnonzero((labels_P != 0) & (labels_P != 1))).size:
        query, document = texts[wrong[0]]
        raise InputError(
            f"pair {step * size + wrong[0]}: the label {labels_P[wrong[0]]} of query {query[:40]!r} and document "
            f"{document[:40]!r} is not 0 or 1; judge pairs as relevant or not (data.relevant_from)"
        )
    tokens_PxL, lengths_P = pad_prompts(prompt.encode_batch(texts), prompt.max_length, prompt.pad_id)
    return PairBatch(tokens_PxL, lengths_P, labels_P)


def group_batch(
    groups: Groups, prompt: Prompt, queries: int, documents: int, seed: int, step: int
) -> GroupBatch[np.ndarray]:
    """Batch `step` of the stream of groups, L = `prompt.max_length`."""
    texts, labels_QxN = groups.batch(seed, step, queries, documents)
    mask_QxN = np.arange(documents) < np.array([len(group) for group in texts])[:, None]
    tokens_BxL, lengths_B = pad_prompts(
        prompt.encode_batch([pair for group in texts for pair in group]), prompt.max_length, prompt.pad_id
    )
    tokens_QxNxL = np.full((queries, documents, prompt.max_length), prompt.pad_id, np.int32)
    lengths_QxN = np.ones((queries, documents), np.int32)
    tokens_QxNxL[mask_QxN] = tokens_BxL
    lengths_QxN[mask_QxN] = lengths_B
    return GroupBatch(tokens_QxNxL, lengths_QxN, labels_QxN, mask_QxN)
