"""Rerank the candidates of one collection and measure them: a folder with all that a publication needs.

run.trec         the reranked run; ties between scores are broken by first-stage rank
per_query.tsv    each judged query's figures, before and after reranking
metrics.json     the figures, with the protocol that they belong to; written last

Every figure is of the run as it is written. Judged queries without candidates count 0; in the written run they have
one placeholder, as TREC asks of topics with nothing retrieved, because most tools average over the queries that a run
has.

Scores are kept in the cache folder (`evaluation/score_cache.py`). Interrupted work resumes, and ends with the same
bytes; other candidates and other metrics are computed from the scores that are there.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from prorank_jax import __version__
from prorank_jax.atomic import write_atomically, writing
from prorank_jax.cache import cache_folder
from prorank_jax.data.beir import Collection
from prorank_jax.data.lines import read_lines
from prorank_jax.data.ndcg import oracle_ndcg_at_10
from prorank_jax.data.runs import Run, read_run, write_run
from prorank_jax.evaluation.folder import GO_ON, Digests, digest_of, make, read_json
from prorank_jax.evaluation.measures import DEFAULT_METRICS, per_query
from prorank_jax.evaluation.rerank import CHUNK_TOKENS, PairScorer, known_scores, nothing, rerank, without
from prorank_jax.evaluation.score_cache import ScoreCache

RUN_FILE = "run.trec"
METRICS_FILE = "metrics.json"
PER_QUERY_FILE = "per_query.tsv"
SCORES = "scores"
"""The folder of the score caches, in the cache folder or, for an evaluation in a bucket, in that one."""
_VERSION = 1
"""Of what a fingerprint means; after a change every collection is done again."""

Summary = dict[str, Any]
"""What `metrics.json` holds."""


class IdentifiedScorer(PairScorer, Protocol):
    """A reranker that can be told from others; `dtype` is the compute dtype, for example `bfloat16`."""

    @property
    def dtype(self) -> str: ...

    @property
    def digest(self) -> str:
        """Changes with anything that a score comes from."""


@dataclass(frozen=True)
class Evaluation:
    """The candidates of a collection, to be reranked and measured.

    Attributes:
      reranker: None takes the candidates as they are.
      run: the candidates of the collection's queries, best first.
      first_stage: where the run came from, for the protocol.
      depth: candidates asked for per query, for the protocol.
      metrics: what `measures.check_metrics` gives.
      instruction: as `Reranker.predict`.
      kept: called after each chunk of work that need not be done again.
      scores: the folder of the score caches; default: `scores` in the cache folder.
      digests: of the collection and the run, where they are known.
    """

    reranker: IdentifiedScorer | None
    collection: Collection
    run: Run
    first_stage: str
    depth: int
    metrics: tuple[str, ...] = DEFAULT_METRICS
    instruction: str | None = None
    kept: Callable[[], None] = nothing
    scores: Path | None = None
    digests: Digests | None = None

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What the figures are of."""
        reranker, collection = self.reranker, self.collection
        return {
            "collection": collection.name,
            "split": collection.split,
            "first_stage": self.first_stage,
            "depth": self.depth,
            "reranked": reranker is not None,
            "max_length": None if reranker is None else reranker.max_length,
            "dtype": None if reranker is None else reranker.dtype,
            "instruction": self.instruction,
            "queries": len(collection.queries),
            "queries_without_candidates": sum(not self.run.get(query_id) for query_id in collection.queries),
            "documents": len(collection.documents),
        }

    @cached_property
    def _digests(self) -> Digests:
        return self.digests or Digests.of(self.collection, self.run)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that the figures come from, and of what the protocol says of it."""
        model = None if self.reranker is None else self.reranker.digest
        digests = self._digests
        return digest_of([_VERSION, model, CHUNK_TOKENS, digests.texts, digests.run, self.protocol])

    @cached_property
    def score_file(self) -> Path:
        """Where the reranker's scores are kept.

        It is another one where anything differs that a score comes from. Devices and versions belong to that: what
        they differ in is rounding, and what a new version of this package corrects.
        """
        assert self.reranker is not None
        device = jax.devices()[0].device_kind
        settings = [self.reranker.max_length, self.reranker.dtype, self.instruction]
        made_by = [__version__, jax.__version__, device]
        key = digest_of([self.reranker.digest, *settings, self._digests.documents, *made_by])
        folder = cache_folder() / SCORES if self.scores is None else self.scores
        return folder / f"{key[:32]}.sqlite"

    def left(self, folder: Path) -> Run:
        """The candidates that have no score yet, of the queries that have such; none where `folder` has the figures."""
        if self.reranker is None or self._finished(folder) is not None:
            return {}
        with ScoreCache(self.score_file) as cache:
            return without(self.run, known_scores(cache, self.collection, self.run))

    def rerank(self, show_progress: bool = False) -> Run:
        """The candidates in the reranker's order, by the scores that are kept and those that are new.

        Raises:
          InputError: a score is not finite, or the scores cannot be kept.
        """
        assert self.reranker is not None
        with ScoreCache(self.score_file) as cache:
            return rerank(self.reranker, self.collection, self.run, show_progress, self.instruction, cache, self.kept)

    def compute(self, show_progress: bool = False) -> Summary:
        """The figures; nothing is written or read.

        Raises:
          InputError: a score is not finite.
        """
        ranked = self.run
        if self.reranker is not None:
            ranked = rerank(self.reranker, self.collection, self.run, show_progress, self.instruction)
        return self._measured(ranked)[0]

    def write(self, out: Path, show_progress: bool = False) -> Summary:
        """Reranks and measures into a folder, which is made if need be.

        A folder that holds the whole of the same work is read. Else what has no score yet is scored.

        Returns:
          what `metrics.json` holds: `metrics` of the reranked run, those of the `first_stage`, the `oracle` (the best
          nDCG@10 that any reranking of it could reach), the `protocol`, and the `fingerprint`.

        Raises:
          InputError: `out` or the scores cannot be written, or a score is not finite.
        """
        make(out)
        if (known := self._finished(out)) is not None:
            if list(known["metrics"]) == list(self.metrics):
                return known
            ranked = read_run(out / RUN_FILE)
        elif self.reranker is None:
            ranked = self.run
        else:
            ranked = self.rerank(show_progress)
        return self.write_ranked(out, ranked, tag="first-stage" if self.reranker is None else "prorank")

    def write_ranked(self, out: Path, ranked: Run, tag: str, about: Mapping[str, Any] | None = None) -> Summary:
        """Measures another order of the candidates into a folder.

        Args:
          tag: one word, of the TREC file.
          about: what the protocol says besides.
        """
        make(out)
        summary, of_queries = self._measured(ranked)
        summary["protocol"] |= about or {}
        with writing(out, GO_ON):
            # Its presence says that the folder is whole.
            (out / METRICS_FILE).unlink(missing_ok=True)
            write_run(out / RUN_FILE, _comparable(self.collection, ranked), tag)
            write_atomically(out / PER_QUERY_FILE, of_queries)
            write_atomically(out / METRICS_FILE, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        return summary

    def _measured(self, ranked: Run) -> tuple[Summary, str]:
        qrels = self.collection.qrels
        before = per_query(qrels, self.run, self.metrics)
        after = before if ranked is self.run else per_query(qrels, ranked, self.metrics)
        summary = {
            "metrics": _means(after),
            "first_stage": _means(before),
            "oracle": {"ndcg@10": oracle_ndcg_at_10(qrels, self.run)},
            "protocol": dict(self.protocol),
            "fingerprint": self.fingerprint,
        }
        columns = {f"first_stage/{name}": values for name, values in before.items()} | after
        return summary, per_query_table(qrels, columns)

    def _finished(self, folder: Path) -> Summary | None:
        """What `metrics.json` says, where the folder is whole and of the same work."""
        known = read_json(folder / METRICS_FILE)
        if not isinstance(known, dict) or known.get("fingerprint") != self.fingerprint:
            return None
        return known if (folder / RUN_FILE).is_file() and (folder / PER_QUERY_FILE).is_file() else None


def read_per_query(folder: Path, metric: str, first_stage: bool = False) -> np.ndarray:
    """Each judged query's figure of a finished evaluation, float64 [queries], in the order of the judgements."""
    header, *rows = [line.split("\t") for _, line in read_lines(folder / PER_QUERY_FILE)]
    column = header.index(f"first_stage/{metric}" if first_stage else metric)
    return np.array([float(row[column]) for row in rows])


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


def _means(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    return {name: float(of_queries.mean()) for name, of_queries in values.items()}


def per_query_table(queries: Iterable[str], columns: Mapping[str, np.ndarray]) -> str:
    """Figures of queries as tab-separated values, with as many digits as give back the same numbers."""
    rows = zip(queries, *(values.tolist() for values in columns.values()), strict=True)
    return "".join("\t".join(map(str, row)) + "\n" for row in [("query_id", *columns), *rows])
