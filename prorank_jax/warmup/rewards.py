"""Rewards of the relevance prompt: was the format kept, and was the answer right?

Completions are read once, by `read_answers`; a reward is then a function `(answers, labels) -> [P, G]`.
"""

import jax.numpy as jnp
from jax import Array

MALFORMED = -1


def read_answers(tokens_PxGxT: Array, answer_ids: tuple[int, int], end_id: int) -> Array:
    """What each completion answers: 0, 1, or `MALFORMED`, int32 [P, G].

    Well-formed is exactly one answer token, then the end of the turn. With answer ids (15, 16) and end 9:
    `[[[16, 9, 0], [16, 16, 9], [7, 16, 9]]]` -> `[[1, -1, -1]]`.
    """
    first = tokens_PxGxT[:, :, 0]
    ended = tokens_PxGxT[:, :, 1] == end_id
    negative, positive = (first == answer for answer in answer_ids)
    return jnp.where(ended & positive, 1, jnp.where(ended & negative, 0, MALFORMED)).astype(jnp.int32)


def format_reward(answers_PxG: Array, labels_P: Array) -> Array:
    """1 where the completion is well-formed, whatever it says."""
    return (answers_PxG != MALFORMED).astype(jnp.float32)


def relevance_reward(answers_PxG: Array, labels_P: Array) -> Array:
    """1 where the completion is well-formed and is the label."""
    return (answers_PxG == labels_P[:, None]).astype(jnp.float32)


REWARDS = {"format": format_reward, "relevance": relevance_reward}
