"""The shapes that requests will need, compiled before the first of them comes."""

import itertools
import string
from collections.abc import Callable

from prorank_jax.progress import tell
from prorank_jax.scoring.shared import tight_width
from prorank_jax.serving.batching import Predictor

_QUERY = 32
"""Words of the longest query; few are longer."""


def sizes(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest`: `sizes(6)` is `[1, 2, 4, 6]`."""
    return [*(1 << power for power in range((largest - 1).bit_length())), largest]


def lengths(longest: int, to_an_octave: int = 4) -> list[int]:
    """Words of a document, or of a query, that make texts of each width, and one that is cut.

    However many tokens stand around them: the widths are no closer together the longer they are.
    """
    widths = {tight_width(length, to_an_octave) for length in range(1, longest + 1)}
    return sorted({0, 1, 8, longest} | widths)


def _ends(count: int) -> list[str]:
    """So many ends of a query, all of as many tokens."""
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    return [" " + " ".join(some) for some in itertools.islice(letters, count)]


def warm_up(predictor: Predictor, max_length: int, batch: int, tokens: int, stopping: Callable[[], bool]) -> None:
    """Scores made-up documents of every length, in batches of every size, for queries of every usual length; and
    batches of several queries.

    Args:
      max_length: tokens of a prompt.
      batch: pairs of a batch at most.
      tokens: of a batch; more are computed in parts, whose shapes are those of smaller batches.
      stopping: whether to end early.
    """
    queries = ["a" + " a" * words for words in lengths(_QUERY, to_an_octave=2)]
    rounds = [
        [(query, " a" * words)] * size
        for query in queries
        for words in lengths(max_length)
        for size in sizes(batch)
        if size == 1 or min(words, max_length) * size <= tokens
    ]
    # Of a document that is cut, the width depends on each token of its query.
    rounds += [
        [("a" + " a" * words, " a" * max_length)] * size
        for words in range(0, _QUERY, 4)
        for size in sizes(batch)
        if size == 1 or max_length * size <= tokens
    ]
    rounds += [
        [(query + end, "a") for end in _ends(size)] * (batch // size) for query in queries for size in sizes(batch)
    ]
    for number, pairs in enumerate(rounds, start=1):
        if stopping():
            return
        predictor.predict(pairs)
        if number % 20 == 0 or number == len(rounds):
            tell(f"warming up {number}/{len(rounds)}")
