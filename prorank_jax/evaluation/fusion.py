"""Fusion of a reranked run with its first stage: ranx's weighted sum of min-max normalised scores.

Each query keeps exactly its candidates, so that the fused run compares with both; equal sums are in first-stage order.
Weights are tuned on queries that are not reported. numba compiles ranx's fusion for about a minute on a machine, once.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

from prorank_jax.data.ndcg import Qrels
from prorank_jax.data.runs import Run
from prorank_jax.errors import InputError
from prorank_jax.evaluation.compiled import with_ranx
from prorank_jax.evaluation.measures import check_metrics, per_query

Rankings = Mapping[str, Sequence[tuple[str, float]]]


class Weights(NamedTuple):
    """What the normalised scores of each run are multiplied with; they add up to 1."""

    first_stage: float
    reranker: float


GRID = tuple(Weights(round(1 - tenths / 10, 1), tenths / 10) for tenths in range(10, -1, -1))
"""Tenths, from the reranker alone to the first stage alone."""


def tune(qrels: Qrels, first_stage: Rankings, reranked: Rankings, metric: str = "ndcg@10") -> Weights:
    """The weights of `GRID` whose fusion has the highest mean of a measure; of equal ones, the most to the reranker.

    Raises:
      InputError: the runs are not of the same candidates, or the metric is unknown.
    """
    (metric,) = check_metrics([metric])
    pair = _Pair(first_stage, reranked)
    best, highest = GRID[0], -1.0
    for weights in GRID:
        mean = float(per_query(qrels, pair.fused(weights), [metric])[metric].mean())
        if mean > highest:
            best, highest = weights, mean
    return best


def fuse(first_stage: Rankings, reranked: Rankings, weights: Weights) -> Run:
    """The candidates of each query by the weighted sum of their scores in both runs, which lies in [0, 1].

    Scores of a query are normalised by its lowest and its highest; where these are equal, all are 0.

    Raises:
      InputError: the runs are not of the same candidates.
    """
    return _Pair(first_stage, reranked).fused(weights)


class _Pair:
    """Two runs of the same candidates as ranx's objects.

    Queries and documents are numbered, in digits of one width: numba compiles ranx for each width of an id anew. A
    document's number is its first-stage rank.
    """

    def __init__(self, first_stage: Rankings, reranked: Rankings) -> None:
        _check(first_stage, reranked)
        self._first_stage = first_stage
        self._number = {query_id: f"{i:08}" for i, query_id in enumerate(q for q, rows in first_stage.items() if rows)}
        if self._number:
            self._runs = with_ranx(lambda ranx: [ranx.Run(self._numbered(run)) for run in (first_stage, reranked)])

    def _numbered(self, run: Rankings) -> dict[str, dict[str, float]]:
        numbered = {}
        for query_id, number in self._number.items():
            document = {name: f"{rank:08}" for rank, (name, _) in enumerate(self._first_stage[query_id])}
            numbered[number] = {document[name]: score for name, score in run[query_id]}
        return numbered

    def fused(self, weights: Weights) -> Run:
        if not self._number:
            return {query_id: [] for query_id in self._first_stage}

        def compute(ranx: ModuleType) -> dict[str, dict[str, float]]:
            fused = ranx.fuse(self._runs, norm="min-max", method="wsum", params={"weights": list(weights)})
            return {number: dict(sums) for number, sums in fused.run.items()}

        sums = with_ranx(compute)
        run: Run = {}
        for query_id, ranking in self._first_stage.items():
            of_query = sums[self._number[query_id]] if ranking else {}
            scored = [(name, of_query[f"{rank:08}"]) for rank, (name, _) in enumerate(ranking)]
            run[query_id] = sorted(scored, key=lambda row: -row[1])
        return run


def _check(first_stage: Rankings, reranked: Rankings) -> None:
    for query_id in dict.fromkeys([*first_stage, *reranked]):
        ours, theirs = ([name for name, _ in run.get(query_id, ())] for run in (first_stage, reranked))
        if sorted(ours) != sorted(theirs):
            name = min({*ours} ^ {*theirs}, default=None)
            what = "a document stands twice" if name is None else f"document {name!r} is in one run alone"
            raise InputError(f"query {query_id!r}: {what}; fuse a first stage and its reranking, candidates alike")
