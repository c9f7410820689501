"""The shapes that requests will need, compiled before the first of them comes."""

from collections.abc import Callable

from prorank_jax.progress import tell
from prorank_jax.scoring.shared import tight_width
from prorank_jax.serving.batching import Predictor

_TOKENS = 8192
"""Batches of more are computed in parts, whose shapes are those of smaller batches."""


def sizes(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest`: `sizes(6)` is `[1, 2, 4, 6]`."""
    return [*(1 << power for power in range((largest - 1).bit_length())), largest]


def lengths(longest: int) -> list[int]:
    """Words of a document that make prompts of each width, and one that is cut.

    However many tokens stand around the document: the widths are no closer together the longer they are.
    """
    return sorted({0, 1, 8, longest, *map(tight_width, range(1, longest + 1))})


def warm_up(predictor: Predictor, max_length: int, batch: int, stopping: Callable[[], bool]) -> None:
    """Scores made-up documents of every length, each length in batches of every size.

    Args:
      max_length: tokens of a prompt.
      batch: pairs of a batch at most.
      stopping: whether to end early.
    """
    rounds = [
        (words, size)
        for words in lengths(max_length)
        for size in sizes(batch)
        if size == 1 or min(words, max_length) * size <= _TOKENS
    ]
    for number, (words, size) in enumerate(rounds, start=1):
        if stopping():
            return
        predictor.predict([("a", " a" * words)] * size)
        if number % 20 == 0 or number == len(rounds):
            tell(f"warming up {number}/{len(rounds)}")
