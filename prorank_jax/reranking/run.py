"""A first-stage run of a collection, reranked: scores, ties and the order of queries are those of an evaluation."""

from collections.abc import Iterator
from pathlib import Path

from prorank_jax.atomic import writing
from prorank_jax.data.beir import Collection
from prorank_jax.data.runs import Run, write_run
from prorank_jax.evaluate import Evaluation
from prorank_jax.evaluation.rerank import PairScorer, rerank_chunks
from prorank_jax.reranker import Hit, Reranker
from prorank_jax.reranking.stream import Ranking


def rankings(
    reranker: PairScorer, collection: Collection, run: Run, instruction: str | None = None, top_k: int | None = None
) -> Iterator[Ranking]:
    """The candidates of each query, best first, equal scores by first-stage rank; a hit's index is that rank, from 0.

    Raises:
      InputError: as `evaluation.rerank.rerank`.
    """
    for some in rerank_chunks(reranker, collection, run, instruction):
        for query_id, ranking in some.items():
            ranks = {document_id: rank for rank, (document_id, _) in enumerate(run[query_id])}
            yield Ranking(
                f"{collection.name}: query {query_id!r}",
                {"_id": query_id, "query": collection.queries[query_id]},
                [
                    Hit(ranks[document_id], score, {"_id": document_id, "text": collection.documents[document_id]})
                    for document_id, score in ranking[:top_k]
                ],
            )


def write_reranked(
    out: Path,
    reranker: Reranker,
    collection: Collection,
    run: Run,
    instruction: str | None,
    top_k: int | None,
    tag: str,
) -> None:
    """Writes the reranked run as a TREC file. Scores are kept as those of an evaluation: interrupted work resumes.

    Raises:
      InputError: as `rankings`; the file or the scores cannot be written.
    """
    with writing(out, "give another --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
    reranked = Evaluation(reranker, collection, run, "", 0, instruction=instruction).rerank(show_progress=True)
    with writing(out, "give another --out"):
        write_run(out, {query_id: ranking[:top_k] for query_id, ranking in reranked.items()}, tag)
