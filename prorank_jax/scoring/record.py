"""Scores of one sample of labelled pairs, where a stage begins and where it ends: what `prorank report` draws.

`scores.jsonl` of a stage has a row for each pair and moment,

    {"at": "begin", "of": "training pairs", "label": 1, "score": 0.4375}

It is written whole, or not at all. The sample depends on the configuration and the seed alone, and nothing that is
learnt depends on it.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from prorank_jax.atomic import writing
from prorank_jax.config import RunConfig
from prorank_jax.data.beir import Collection
from prorank_jax.data.examples import Example, Source
from prorank_jax.data.runs import Run
from prorank_jax.data.stream import pairs
from prorank_jax.errors import InputError
from prorank_jax.evaluation.rerank import PairScorer
from prorank_jax.json_text import parse_json
from prorank_jax.model.decoder import Params
from prorank_jax.runtime.mesh import largest
from prorank_jax.runtime.room import GO_ON, Room
from prorank_jax.seeds import sequence
from prorank_jax.storage import Place, read_bytes, write_text

SCORES = "scores.jsonl"
PAIRS = 512
"""Pairs of a sample at most."""
_PROMPTS_PER_PAIR = 24
"""Prompts that a run learns from for each pair: the sample is scored three times, and so takes a twentieth of the time
of a short run at most."""

Row = dict[str, Any]
Moment = Literal["begin", "end"]


class Sample(NamedTuple):
    """Labelled pairs, half of them relevant, and in words where they are from."""

    of: str
    examples: list[Example]


def sample_size(config: RunConfig) -> int:
    """Pairs of a run's sample: an even number, at least 2."""
    warmup, score = config.warmup, config.score
    prompts = warmup.steps * warmup.prompts_per_step if warmup else 0
    prompts += score.steps * score.queries_per_step * score.documents_per_query if score else 0
    return max(min(prompts // _PROMPTS_PER_PAIR, PAIRS) // 2, 1) * 2


def draw(
    config: RunConfig,
    held_out: tuple[Collection, Run] | None,
    sources: Sequence[Source],
    weights: Sequence[float],
) -> Sample:
    """The sample of a run, by its seed: of held-out queries where it has any, else of the training data.

    Empty where all pairs of the training data have one label.
    """
    count = sample_size(config)
    if held_out is not None and (examples := _held_out(*held_out, count, config.seed)):
        return Sample("held-out queries", examples)
    try:
        return Sample("training pairs", pairs(sources, weights, config.seed).rows(range(count)))
    except InputError:
        return Sample("training pairs", [])


def _held_out(collection: Collection, run: Run, count: int, seed: int) -> list[Example]:
    """Relevant documents, and candidates that are not; empty where there are none of either kind."""
    qrels, documents = collection.qrels, collection.documents
    kinds = (
        [
            (query, document)
            for query, ranking in run.items()
            for document, _ in ranking
            if qrels[query].get(document, 0) <= 0
        ],
        [(query, name) for query, of in qrels.items() for name, grade in of.items() if grade > 0 and name in documents],
    )
    if not all(kinds):
        return []
    rng = np.random.default_rng(sequence(seed, "score/record"))
    examples = []
    for label, named in enumerate(kinds):
        chosen = np.sort(rng.choice(len(named), min(count // 2, len(named)), replace=False))
        examples += [
            Example(collection.queries[query], documents[document], label)
            for query, document in (named[place] for place in chosen)
        ]
    return examples


class ScoreRecord:
    """Keeps the scores of a sample in the folders of the stages.

    Args:
      reranker: makes a reranker of parameters.
      room: who waits where the disk is full.
    """

    def __init__(self, reranker: Callable[[Params], PairScorer], sample: Sample, room: Room):
        self._reranker, self._sample, self._room = reranker, sample, room

    def keep(self, params: Params, *moments: tuple[Place, Moment]) -> None:
        """Adds the scores that a model gives to the files of stages, unless those of a moment are there already.

        Each process makes this call; process 0 alone reads and writes.

        Args:
          moments: of which the model is: a stage's folder, and where in the stage. A stage ends with the model that
            the next one begins with, which is scored once.

        Raises:
          InputError: a file cannot be written.
        """
        writes = jax.process_index() == 0
        kept = {folder: read_scores(folder / SCORES) for folder, _ in moments} if writes else {}
        of_moments = [[row for row in kept[folder] if row["at"] == at] for folder, at in moments if writes]
        known = next((rows for rows in of_moments if rows), [])
        if largest(int(writes and bool(self._sample.examples) and not known)):
            scores = self._scores(params)
            known = [
                # Four digits: more would only tell which machine computed them.
                {
                    "at": moments[0][1],
                    "of": self._sample.of,
                    "label": example.label,
                    "score": round(score, 4) if math.isfinite(score) else None,
                }
                for example, score in zip(self._sample.examples, scores.tolist(), strict=True)
            ]
        for (folder, at), rows in zip(moments, of_moments, strict=True) if writes else ():
            if known and not rows:
                self._write(folder / SCORES, [*kept[folder], *(row | {"at": at} for row in known)])

    def _write(self, path: Place, rows: Sequence[Row]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in sorted(rows, key=lambda row: str(row["at"])))
        with writing(path, GO_ON):
            self._room.keep_trying(path, lambda: write_text(path, text))

    def _scores(self, params: Params) -> np.ndarray:
        """float32 [pairs of the sample]."""
        examples, reranker = self._sample.examples, self._reranker(params)
        scores = np.empty(len(examples), np.float32)
        for instruction in dict.fromkeys(one.instruction for one in examples):
            places = [place for place, one in enumerate(examples) if one.instruction == instruction]
            told = [(examples[place].query, examples[place].document) for place in places]
            [scores[places]] = reranker.predict_chunks([told], instruction=instruction)
        return scores


def read_scores(path: Place) -> list[Row]:
    """The rows of a `scores.jsonl`; none where it is missing or is not what a stage writes."""
    content = read_bytes(path)
    try:
        rows = [parse_json(line) for line in (content or b"").splitlines()]
        return [row for row in rows if row["at"] in ("begin", "end") and isinstance(row["label"], int)]
    except (ValueError, KeyError, TypeError):
        return []
