"""Rerank a first-stage run and measure it: `run.trec` and `metrics.json` of one collection.

Every figure is of the run as it is written, and is kept with its protocol. Ties between scores are
broken by first-stage rank. Judged queries without candidates count 0; in the written run they have
one placeholder, as TREC asks of topics with nothing retrieved, because most tools average over the
queries that a run has.
"""

import json
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.candidates import Run, strictly_decreasing, write_atomically, write_run
from prorank_jax.data.ndcg import oracle_ndcg_at_10
from prorank_jax.errors import InputError

METRICS = ("ndcg@10", "map", "mrr@10", "recall@100")


class PairScorer(Protocol):
    """What an evaluation needs of a reranker; `dtype` is the compute dtype, for example `bfloat16`."""

    @property
    def max_length(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    def predict(self, pairs: Sequence[tuple[str, str]], *, show_progress: bool) -> np.ndarray: ...


def evaluate(
    reranker: PairScorer | None,
    collection: Collection,
    run: Run,
    out: Path | None,
    *,
    first_stage: str,
    depth: int,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Reranks the run, or takes it as it is where `reranker` is None, and measures it.

    Args:
      run: the candidates of the collection's queries, best first.
      out: folder for `run.trec` and `metrics.json`, made if need be; nothing is written where None.
      first_stage: where the run came from, `bm25` or a path, for the protocol.
      depth: candidates asked for per query, for the protocol.

    Returns:
      what `metrics.json` holds: `metrics` of the reranked run, those of the `first_stage`, the
      `oracle` (the best nDCG@10 that any reranking of it could reach), and the `protocol`.

    Raises:
      InputError: `out` cannot be made, or the reranker gives a score that is not finite.
    """
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{out}: cannot be made ({error.strerror}); give the path of a folder") from None
    retrieved = _comparable(collection, run)
    if reranker is None:
        ranked = retrieved
    else:
        ranked = _comparable(collection, rerank(reranker, collection, run, show_progress))
    metrics = measure(collection, ranked)
    summary = {
        "metrics": metrics,
        "first_stage": metrics if reranker is None else measure(collection, retrieved),
        "oracle": {"ndcg@10": oracle_ndcg_at_10(collection.qrels, run)},
        "protocol": _protocol(reranker, collection, run, first_stage, depth),
    }
    if out is not None:
        write_run(out / "run.trec", ranked, tag="first-stage" if reranker is None else "prorank")
        # Last, so that its presence says that the folder is whole.
        write_atomically(out / "metrics.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return summary


def rerank(reranker: PairScorer, collection: Collection, run: Run, show_progress: bool = False) -> Run:
    """Orders each query's candidates by the reranker's score, equal scores by first-stage rank.

    Raises:
      InputError: a score is not finite.
    """
    pairs = [
        (collection.queries[query_id], collection.documents[document_id])
        for query_id, ranking in run.items()
        for document_id, _ in ranking
    ]
    scores = np.asarray(reranker.predict(pairs, show_progress=show_progress), np.float32)
    if scores.shape != (len(pairs),):
        raise ValueError(f"the reranker gave scores of shape {scores.shape} for {len(pairs)} pairs")
    reranked: Run = {}
    start = 0
    for query_id, ranking in run.items():
        of_query = scores[start : start + len(ranking)]
        start += len(ranking)
        if not np.isfinite(of_query).all():
            document_id = ranking[int(np.argmin(np.isfinite(of_query)))][0]
            raise InputError(
                f"{collection.name}: the model's score of query {query_id!r} and document {document_id!r} "
                "is not a finite number; use float32, or another checkpoint"
            )
        order = np.argsort(-of_query, kind="stable")
        reranked[query_id] = [(ranking[i][0], float(of_query[i])) for i in order]
    return reranked


def measure(collection: Collection, run: Run) -> dict[str, float]:
    """nDCG@10 (linear gain, as trec_eval), MAP, MRR@10 and recall@100 by ranx, in the order of the lists.

    They are means over all judged queries; one that the run lacks counts 0. The first call in a
    process compiles ranx for up to a minute; `data.ndcg.ndcg_at_10` does without.
    """
    # ranx imports slowly and is needed for reports only.
    import ranx
    from numba.core.errors import NumbaTypeSafetyWarning

    rows = {query_id: dict(ranking) for query_id, ranking in strictly_decreasing(run).items() if ranking}
    qrels = {query_id: dict(judgements) for query_id, judgements in collection.qrels.items()}
    with warnings.catch_warnings():
        # Of ranx's own loops: it casts the index of a query from unsigned to signed.
        warnings.simplefilter("ignore", NumbaTypeSafetyWarning)
        figures = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(rows), list(METRICS), make_comparable=True)
    return {name: float(figures[name]) for name in METRICS}


def _comparable(collection: Collection, run: Run) -> Run:
    """One ranking for every judged query: a document that is not relevant stands in for an empty one."""
    comparable: Run = {}
    for query_id, judgements in collection.qrels.items():
        ranking = run.get(query_id, [])
        if not ranking:
            others = (name for name in collection.documents if name != query_id and judgements.get(name, 0) <= 0)
            ranking = [(name, 0.0) for name in islice(others, 1)]
        comparable[query_id] = ranking
    return comparable


def _protocol(
    reranker: PairScorer | None, collection: Collection, run: Run, first_stage: str, depth: int
) -> dict[str, Any]:
    return {
        "collection": collection.name,
        "split": collection.split,
        "first_stage": first_stage,
        "depth": depth,
        "reranked": reranker is not None,
        "max_length": None if reranker is None else reranker.max_length,
        "dtype": None if reranker is None else reranker.dtype,
        "queries": len(collection.queries),
        "queries_without_candidates": sum(not run.get(query_id) for query_id in collection.queries),
        "documents": len(collection.documents),
    }
