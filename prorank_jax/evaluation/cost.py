"""What reranking will cost, told before it starts: pairs, tokens, and minutes at a speed measured on a few of them."""

import math
import time
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from prorank_jax.data.beir import Collection
from prorank_jax.data.runs import Run
from prorank_jax.evaluation.rerank import Pairs
from prorank_jax.reranker import Reranker

_SAMPLED = 64
"""Pairs of a collection whose length is measured."""
_FIRST_TIMED = 16
_SECONDS = 0.5
"""More pairs are timed until they take so long, or there are no more."""


class Work(NamedTuple):
    """Candidates of a collection that are to be reranked, with some of them as a sample."""

    pairs: int
    sample: Pairs
    instruction: str | None


class Cost(NamedTuple):
    """Pairs, tokens of their prompts, and the seconds that they will take."""

    pairs: int
    tokens: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.pairs:,} pairs, {_rounded(self.tokens)} tokens, about {_time(self.seconds)}"


def work_of(collection: Collection, left: Run, instruction: str | None) -> Work:
    """The work on a collection, of whose candidates these are left."""
    places = [(query_id, name) for query_id, ranking in left.items() for name, _ in ranking]
    drawn = [places[i * len(places) // _SAMPLED] for i in range(_SAMPLED)] if len(places) > _SAMPLED else places
    sample = [(collection.queries[query_id], collection.documents[name]) for query_id, name in drawn]
    return Work(len(places), sample, instruction)


def estimate(reranker: Reranker, works: Sequence[Work]) -> list[Cost]:
    """The cost of each: the tokens from its own sample, the speed from all samples, compilation aside."""
    lengths = []
    for work in works:
        prompt = reranker.prompt.with_instruction(work.instruction or "")
        lengths.append(sum(map(len, prompt.encode_batch(work.sample))))
    mixed = [pair for pairs in zip_longest(*(work.sample for work in works)) for pair in pairs if pair is not None]
    speed = _tokens_per_second(reranker, mixed) if mixed else math.inf
    costs = []
    for work, of_sample in zip(works, lengths, strict=True):
        tokens = round(work.pairs * of_sample / max(len(work.sample), 1))
        costs.append(Cost(work.pairs, tokens, tokens / speed))
    return costs


def total(costs: Sequence[Cost]) -> Cost:
    """The sum."""
    pairs, tokens, seconds = zip(*costs, strict=True)
    return Cost(sum(pairs), sum(tokens), sum(seconds))


def _tokens_per_second(reranker: Reranker, pairs: Pairs) -> float:
    count = min(_FIRST_TIMED, len(pairs))
    while True:
        timed = pairs[:count]
        list(reranker.predict_chunks([timed]))  # compiles
        started = time.perf_counter()
        list(reranker.predict_chunks([timed]))
        seconds = time.perf_counter() - started
        if seconds >= _SECONDS or count == len(pairs):
            return sum(map(len, reranker.prompt.encode_batch(timed))) / seconds
        count = min(4 * count, len(pairs))


def _rounded(count: int) -> str:
    for unit, name in ((10**9, "billion"), (10**6, "million")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:,}"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
