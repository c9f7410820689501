"""Examples as arrays: prompts tokenised and padded on the right to one length.

Every batch of a stage has the same shape, so that its step is compiled once.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from prorank_jax.prompt import Prompt

if TYPE_CHECKING:
    from prorank_jax.data.stream import Pairs

A = TypeVar("A")
"""numpy arrays on the host, JAX arrays on devices."""


class PairBatch(NamedTuple, Generic[A]):
    """Prompts with the right answer to each: int32 arrays, P prompts of L tokens."""

    tokens_PxL: A
    lengths_P: A
    labels_P: A


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


def encode(prompt: Prompt, rows: Sequence[tuple[str, str, str | None]]) -> list[list[int]]:
    """The ids of a prompt for each row of query, document and instruction; None is the prompt's own instruction.

    Raises:
      InputError: the template has no place for an instruction, or no room beside it.
    """
    ids: list[list[int]] = [[] for _ in rows]
    for instruction in dict.fromkeys(instruction for _, _, instruction in rows):
        places = [place for place, row in enumerate(rows) if row[2] == instruction]
        told = prompt if instruction is None else _told(_Same(prompt), instruction)
        for place, encoded in zip(places, told.encode_batch([rows[place][:2] for place in places]), strict=True):
            ids[place] = encoded
    return ids


class _Same:
    """A key that is equal for one and the same prompt; prompts themselves hold lists and have no hash."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.prompt is self.prompt

    def __hash__(self) -> int:
        return id(self.prompt)


@lru_cache(maxsize=256)
def _told(key: _Same, instruction: str) -> Prompt:
    """The prompt with an instruction: cutting the template anew takes longer than a row does."""
    return key.prompt.with_instruction(instruction)


def pair_batch(pairs: "Pairs", prompt: Prompt, rows: Sequence[int]) -> PairBatch[np.ndarray]:
    """These rows of the stream of pairs, L = `prompt.max_length`.

    Raises:
      InputError: as `encode`.
    """
    examples = pairs.rows(rows)
    ids = encode(prompt, [(query, document, instruction) for query, document, _, instruction in examples])
    tokens_PxL, lengths_P = pad_prompts(ids, prompt.max_length, prompt.pad_id)
    return PairBatch(tokens_PxL, lengths_P, np.array([example.label for example in examples], np.int32))
