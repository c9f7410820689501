"""nDCG@10 in numpy: trec_eval's, with linear gain, for places where ranx's compile time is unwanted.

DCG = sum over ranks i = 1..10 of gain_i / log2(i + 1), nDCG = DCG / (DCG of the best possible order of
*all* judged documents), https://doi.org/10.1145/582415.582418; the gain is the judgement itself, and
0 for unjudged documents and for judgements below 0. A query without relevant documents counts 0.
"""

from collections.abc import Mapping, Sequence

import numpy as np

_CUTOFF = 10
_DISCOUNT = 1.0 / np.log2(np.arange(2, _CUTOFF + 2))

Qrels = Mapping[str, Mapping[str, int]]


def ndcg_at_10(qrels: Qrels, run: Mapping[str, Sequence[tuple[str, float]]]) -> float:
    """Mean nDCG@10 over the queries of `qrels`, in the order of the run's lists (scores are not read).

    A query that the run lacks counts 0; queries that `qrels` lacks are left out.
    """
    return _mean(qrels, {query_id: _gains(qrels[query_id], run.get(query_id, ())) for query_id in qrels})


def oracle_ndcg_at_10(qrels: Qrels, run: Mapping[str, Sequence[tuple[str, float]]]) -> float:
    """The highest mean nDCG@10 that any reranking of the run's candidates can reach."""
    best = {query_id: sorted(_gains(qrels[query_id], run.get(query_id, ())), reverse=True) for query_id in qrels}
    return _mean(qrels, best)


def _gains(judgements: Mapping[str, int], ranking: Sequence[tuple[str, float]]) -> list[int]:
    return [max(judgements.get(document_id, 0), 0) for document_id, _ in ranking]


def _mean(qrels: Qrels, gains: Mapping[str, list[int]]) -> float:
    values = []
    for query_id, judgements in qrels.items():
        ideal = _dcg(sorted((max(judgement, 0) for judgement in judgements.values()), reverse=True))
        values.append(_dcg(gains[query_id]) / ideal if ideal > 0 else 0.0)
    return float(np.mean(values))


def _dcg(gains: Sequence[int]) -> float:
    top = np.asarray(gains[:_CUTOFF], np.float64)
    return float(top @ _DISCOUNT[: len(top)])
