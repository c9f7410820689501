"""Batches of score learning: groups become token ids wherever there is a thread to spare, and then arrays."""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from prorank_jax.data.examples import Group
from prorank_jax.data.layout import GroupPrompts, Layout, arrange
from prorank_jax.data.loader import encode
from prorank_jax.prompt import Prompt

A = TypeVar("A")
"""numpy arrays on the host, JAX arrays on devices."""


class EncodedGroups(NamedTuple):
    """The prompts of Q groups as token ids, and the labels to learn, float32."""

    prompts: list[list[list[int]]]
    labels: list[np.ndarray]

    @property
    def tokens(self) -> int:
        """Tokens of all prompts, those in common counted for each document."""
        return sum(len(ids) for group in self.prompts for ids in group)


class GroupBatch(NamedTuple, Generic[A]):
    """Prompts of Q queries with C documents each, float32 labels to learn, and a mask that is False where a group has
    no document."""

    prompts: GroupPrompts[A]
    labels_QxC: A
    mask_QxC: A


def encode_groups(groups: Sequence[Group], prompt: Prompt) -> EncodedGroups:
    """The groups' prompts and targets."""
    rows = [(group.query, document, group.instruction) for group in groups for document in group.documents]
    ids = iter(encode(prompt, rows))
    return EncodedGroups(
        [[next(ids) for _ in group.documents] for group in groups],
        [np.array(group.targets, np.float32) for group in groups],
    )


def group_batch(
    groups: EncodedGroups, documents: int, layout: Layout, units: int, pad_id: int
) -> GroupBatch[np.ndarray]:
    """The groups as arrays of C = `documents`; see `layout.arrange`."""
    labels_QxC = np.zeros((len(groups.labels), documents), np.float32)
    mask_QxC = np.zeros((len(groups.labels), documents), bool)
    for row, labels in enumerate(groups.labels):
        labels_QxC[row, : len(labels)] = labels
        mask_QxC[row, : len(labels)] = True
    return GroupBatch(arrange(groups.prompts, documents, layout, units, pad_id), labels_QxC, mask_QxC)
