"""Held-out queries on which a stage is measured while it goes on: nDCG@10 of their reranked candidates."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from prorank_jax.config import DevConfig
from prorank_jax.data.beir import Collection
from prorank_jax.data.candidates import candidates
from prorank_jax.data.collections import is_collection, open_collection
from prorank_jax.data.ndcg import ndcg_at_10
from prorank_jax.data.runs import Run
from prorank_jax.errors import InputError
from prorank_jax.evaluation.rerank import PairScorer, rerank
from prorank_jax.model.decoder import Params

METRIC = "dev/ndcg@10"


@dataclass(frozen=True)
class Development:
    """Queries of a collection with their candidates."""

    collection: Collection
    run: Run
    reranker: Callable[[Params], PairScorer]
    """Makes a reranker of parameters."""

    @classmethod
    def open(
        cls, config: DevConfig, training: str, reranker: Callable[[Params], PairScorer], place: str = "score.dev"
    ) -> "Development":
        """Reads the collection, `training` where the configuration names none, and retrieves its candidates.

        Args:
          place: of the section, for messages.

        Raises:
          InputError: no such collection or split, nothing retrieved, or no collection named where `training` is none.
        """
        if config.path is None and not is_collection(training):
            raise InputError(
                f"config: {place}.path: left out, and data.path={training} is no collection to measure on; name one"
            )
        collection = open_collection(config.path or training, config.split)
        if config.queries is not None and config.queries < len(collection.queries):
            names = list(collection.queries)
            drawn = np.sort(np.random.default_rng(0).choice(len(names), config.queries, replace=False))
            collection = collection.only([names[i] for i in drawn])
        run = candidates(collection, config.candidates, config.depth, show_progress=True)
        return cls(collection, run, reranker)

    def first_stage(self) -> float:
        """nDCG@10 of the candidates as they were retrieved."""
        return ndcg_at_10(self.collection.qrels, self.run)

    def measure(self, params: Params) -> float:
        """nDCG@10 of the candidates as these parameters rerank them.

        Raises:
          InputError: a score is not finite.
        """
        return ndcg_at_10(self.collection.qrels, rerank(self.reranker(params), self.collection, self.run))
