"""A made collection with its candidates, and a reranker that scores a document by its letter."""

from dataclasses import dataclass, field

import numpy as np

from prorank_jax.data.beir import Collection
from prorank_jax.data.runs import Run
from prorank_jax.evaluate import Evaluation

COLLECTION = Collection(
    name="made",
    split="test",
    documents={name: f"text of {name}" for name in "abcdef"},
    queries={"p": "query p", "q": "query q", "none": "query none"},
    qrels={"p": {"a": 1, "b": 2}, "q": {"e": 1, "outside": 1}, "none": {"a": 1}},
)
RUN: Run = {"p": [("c", 3.0), ("a", 2.0), ("b", 1.0)], "q": [("d", 5.0), ("f", 4.0), ("e", 3.0)], "none": []}


@dataclass
class FakeReranker:
    """Keeps what it was asked; `scores` is by the last letter of a document."""

    scores: dict[str, float]
    max_length: int = 128
    dtype: str = "bfloat16"
    digest: str = "fake"
    asked: list[tuple[str, str]] = field(default_factory=list)
    instructions: set[str | None] = field(default_factory=set)

    def predict_chunks(self, chunks, *, instruction=None):
        self.instructions.add(instruction)
        for pairs in chunks:
            self.asked.extend(pairs)
            yield np.array([self.score(document) for _, document in pairs], np.float32)

    def score(self, document):
        return self.scores.get(document[-1], 0.0)


def evaluation(reranker, collection=COLLECTION, run=RUN, depth=3, **fields):
    return Evaluation(reranker, collection, run, "bm25", depth, **fields)
