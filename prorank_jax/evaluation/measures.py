"""Measures of a ranking by ranx, one value a query: nDCG, MAP, MRR, recall, precision and hit rate.

They are trec_eval's: the gain of nDCG is the judgement itself, a document is relevant where it is judged 1 or more, and
a judged query that the run lacks counts 0. The order of a run's lists is the ranking; scores are not read, so that no
tie is left to a library.

ranx is handed arrays of numbers instead of texts: what numba compiles for them serves every collection.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import ModuleType

import numpy as np

from prorank_jax.data.ndcg import Qrels
from prorank_jax.errors import InputError
from prorank_jax.evaluation.compiled import with_ranx

DEFAULT_METRICS = ("ndcg@10", "map", "mrr@10", "recall@100")

# Whether a measure needs a cutoff; without one it is of all documents that a run has.
_NEEDS_CUTOFF = {"ndcg": False, "map": False, "mrr": False, "recall": False, "precision": True, "hit_rate": True}
_QUERIES_AT_ONCE = 512


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The names as `per_query` takes them: in lower case, without spaces around them, none twice.

    `["nDCG@10", "MAP", "map "]` -> `("ndcg@10", "map")`

    Raises:
      InputError: a name is unknown or lacks its cutoff, or there is none.
    """
    if not names:
        raise InputError(f"metrics: none given; name at least one, for example {DEFAULT_METRICS[0]}")
    return tuple(dict.fromkeys(map(_checked, names)))


def per_query(
    qrels: Qrels, run: Mapping[str, Sequence[tuple[str, float]]], metrics: Sequence[str] = DEFAULT_METRICS
) -> dict[str, np.ndarray]:
    """The measures of every query of `qrels`.

    The first call on a machine compiles ranx for about 10 seconds; `data.ndcg.ndcg_at_10` does without.

    Args:
      run: query id -> (document id, score), best first. Queries that `qrels` lacks are left out.

    Returns:
      metric -> float64 `[queries]`, in the order of `qrels`.

    Raises:
      InputError: a metric is unknown.
    """
    metrics = check_metrics(metrics)
    blocks = list(_blocks(qrels, run))

    def compute(ranx: ModuleType) -> list[dict[str, np.ndarray]]:
        # Twice the same, because ranx fails on a single metric where it is asked for values and not for their mean.
        names = [*metrics, metrics[0]]
        return [
            ranx.evaluate(judged, ranked, names, return_mean=False, save_results_in_run=False)
            for judged, ranked in blocks
        ]

    values = with_ranx(compute) if blocks else []
    return {name: np.concatenate([np.zeros(0), *(block[name] for block in values)]) for name in metrics}


def _blocks(qrels: Qrels, run: Mapping[str, Sequence[tuple[str, float]]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The relevant documents and the ranking of some queries at a time, each `[queries, documents, 2]`.

    A row is a document and its judgement. Documents are numbered by query: the relevant ones from 0, the best judged
    first; all others are -1, and so are the rows that fill up a short list.

        {"q": {"a": 1, "b": 0, "c": 2}}, {"q": [("b", 9.0), ("a", 8.0)]} -> [[[0, 2], [1, 1]]], [[[-1, 0], [1, 0]]]
    """
    queries = iter(qrels.items())
    while block := list(islice(queries, _QUERIES_AT_ONCE)):
        relevant = [
            sorted(((grade, name) for name, grade in judgements.items() if grade > 0), key=lambda row: -row[0])
            for _, judgements in block
        ]
        rankings = [run.get(query_id, ()) for query_id, _ in block]
        judged = _empty(len(block), max(map(len, relevant)))
        ranked = _empty(len(block), max(map(len, rankings)))
        for row, (documents, ranking) in enumerate(zip(relevant, rankings, strict=True)):
            number = {name: position for position, (_, name) in enumerate(documents)}
            judged[row, : len(documents), 0] = np.arange(len(documents))
            judged[row, : len(documents), 1] = [grade for grade, _ in documents]
            ranked[row, : len(ranking), 0] = [number.get(name, -1) for name, _ in ranking]
        yield judged, ranked


def _empty(queries: int, documents: int) -> np.ndarray:
    rows = np.zeros((queries, max(documents, 1), 2))
    rows[:, :, 0] = -1
    return rows


def _checked(name: str) -> str:
    measure, at, cutoff = name.strip().lower().partition("@")
    if measure not in _NEEDS_CUTOFF or (at and not re.fullmatch(r"0*[1-9][0-9]{0,8}", cutoff)):
        near = difflib.get_close_matches(measure, _NEEDS_CUTOFF, n=1, cutoff=0.5)
        k = str(int(cutoff)) if re.fullmatch(r"0*[1-9][0-9]{0,8}", cutoff) else "10"
        meant = near[0] + ("@" + k if at or _NEEDS_CUTOFF[near[0]] else "") if near else None
        raise InputError(
            f"metric {name!r}: unknown; "
            + (f"did you mean {meant!r}? Known are " if meant else "known are ")
            + ", ".join(f"{known}@k" for known in _NEEDS_CUTOFF)
            + " and "
            + ", ".join(known for known, needed in _NEEDS_CUTOFF.items() if not needed)
        )
    if _NEEDS_CUTOFF[measure] and not at:
        raise InputError(f"metric {name!r}: has no cutoff; write for example {measure}@10")
    return f"{measure}@{int(cutoff)}" if at else measure
