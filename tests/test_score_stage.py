"""The loop of score learning: measured on held-out queries, ended when it gets no better, its best model kept."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from _small_decoder import random_params, small_config
from meshes import mesh_of

from prorank_jax.config import DevConfig, RunConfig
from prorank_jax.config_file import parse_config
from prorank_jax.data.beir import Collection
from prorank_jax.data.examples import Group
from prorank_jax.data.layout import Layout
from prorank_jax.errors import InputError
from prorank_jax.evaluation.development import METRIC, Development
from prorank_jax.model.decoder import Decoder
from prorank_jax.prompt import PromptParts
from prorank_jax.reranker import Reranker
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.runtime.metrics import read_metrics
from prorank_jax.runtime.preemption import Preemption
from prorank_jax.scoring.batches import encode_groups, group_batch
from prorank_jax.scoring.scores import answer_margin, last_hidden
from prorank_jax.scoring.stage import Scored, check_score, train_score

pytestmark = pytest.mark.usefixtures("fast_compilation")

DECODER = Decoder(small_config(12, tied=True))


def encode_parts(pairs, known=None):
    return [PromptParts((3, 4, 5 + int(query)), [8 + int(document)] * 3) for query, document in pairs]


def encode_batch(pairs):
    return [[*shared, *own] for shared, own in encode_parts(pairs)]


PROMPT: Any = SimpleNamespace(
    answer_ids=(0, 1), end_id=2, pad_id=0, max_length=16, encode_batch=encode_batch, encode_parts=encode_parts
)


class Groups:
    """An endless stream: documents 1 are relevant; a count of what was read."""

    def __init__(self):
        self.read: list[int] = []

    def __getitem__(self, position: int) -> Group:
        self.read.append(position)
        rng = np.random.default_rng(position)
        labels = tuple(float(x) for x in rng.permutation([1, 0, 0]))
        return Group(str(rng.integers(3)), tuple(str(int(label)) for label in labels), labels, labels)


@dataclass
class Held:
    """Held-out queries with measures told beforehand; keeps the parameters that were measured."""

    measures: list[float]
    measured: list[Any] = field(default_factory=list)

    def measure(self, params: Any) -> float:
        self.measured.append(jax.device_get(params))
        return self.measures[len(self.measured) - 1]

    def first_stage(self) -> float:
        return 0.3


def run_config(**score: Any) -> RunConfig:
    given = {"steps": 8, "queries_per_step": 4, "documents_per_query": 3, "checkpoint_every": 3, "log_every": 1}
    optimizer = score.pop("optimizer", {"learning_rate": 0.05})
    return parse_config(
        {"model": {"base": "x"}, "data": {"path": "y"}, "score": {**given, "optimizer": optimizer, **score}}
    )


def train(folder: Path, held: Held | None, **score: Any) -> Scored:
    groups: Any = Groups()
    development: Any = held
    config = run_config(**score)
    return train_score(
        config,
        DECODER,
        random_params(DECODER, 0, 0.2),
        PROMPT,
        groups,
        development,
        mesh_of(1, 1),
        folder,
        Preemption(),
    )


def assert_equal(one: Any, other: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), one, other)


def steps_of(folder: Path) -> list[int]:
    return Checkpoints(folder / "checkpoints", 2).steps()


def test_the_best_model_is_the_result(tmp_path):
    # Before, then at steps 2, 4, 6 and 8.
    held = Held([0.4, 0.5, 0.7, 0.6, 0.65])
    scored = train(tmp_path, held, dev={"every": 2}, keep_checkpoints=1)
    assert scored.step == 4
    assert scored.development == {"first stage": 0.3, "before": 0.4, "after": 0.7}
    assert_equal(scored.params, held.measured[2])
    # The newest is kept to go on from, and the best.
    assert steps_of(tmp_path) == [4, 8]
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row[METRIC]) for row in rows if METRIC in row] == [
        (0, 0.4), (2, 0.5), (4, 0.7), (6, 0.6), (8, 0.65),
    ]  # fmt: skip


def test_of_two_equal_models_the_earlier_is_the_best(tmp_path):
    held = Held([0.4, 0.5, 0.5, 0.5, 0.5])
    assert train(tmp_path, held, dev={"every": 2}, keep_checkpoints=1).step == 2
    assert steps_of(tmp_path) == [2, 8]


def test_without_held_out_queries_the_last_step_is_the_result(tmp_path):
    scored = train(tmp_path, None)
    assert (scored.step, scored.development) == (8, {})
    assert steps_of(tmp_path) == [6, 8]


def test_the_stage_ends_when_patience_does_and_stays_ended(tmp_path):
    held = Held([0.4, 0.7, 0.5, 0.6])
    scored = train(tmp_path, held, dev={"every": 2, "patience": 2}, steps=20)
    # Best at 2; 4 and 6 were no better.
    assert scored.step == 2 and steps_of(tmp_path)[-1] == 6
    again = train(tmp_path, Held([]), dev={"every": 2, "patience": 2}, steps=20)
    assert again.development == scored.development == {"first stage": 0.3, "before": 0.4, "after": 0.7}
    assert_equal(again.params, scored.params)


def test_a_run_that_was_stopped_goes_on_to_the_same_result(tmp_path):
    measures = [0.4, 0.5, 0.7, 0.6, 0.65]
    whole = train(tmp_path / "whole", Held(measures), dev={"every": 2})
    held = Held(measures[:3])
    with pytest.raises(IndexError):  # at the fourth measurement, step 6
        train(tmp_path / "cut", held, dev={"every": 2})
    assert steps_of(tmp_path / "cut")[-1] == 4
    resumed = train(tmp_path / "cut", Held(measures[3:]), dev={"every": 2})
    assert (resumed.step, resumed.development) == (whole.step, whole.development)
    assert_equal(resumed.params, whole.params)
    named = [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")[1:]]
    assert named == [(row["step"], row["loss"]) for row in read_metrics(tmp_path / "cut" / "metrics.jsonl")[1:]]


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_an_anchor_holds_the_model_where_it_was(tmp_path, lora):
    kl = {}
    for anchor in (1e-6, 100.0):
        folder = tmp_path / str(anchor)
        train(folder, None, anchor=anchor, lora=lora, loss="mse", optimizer={"learning_rate": 0.003})
        kl[anchor] = [row["kl"] for row in read_metrics(folder / "metrics.jsonl")]
    assert kl[100.0][0] == pytest.approx(0.0, abs=1e-6)
    assert 0 < max(kl[100.0]) and kl[100.0][-1] < 0.5 * kl[1e-6][-1]


def test_scores_of_the_stage_are_the_reranker_s(tmp_path):
    held = Held([0.0, 1.0])
    scored = train(tmp_path, held, steps=2, dev={"every": 2})
    groups = [Groups()[position] for position in range(4)]
    batch = group_batch(encode_groups(groups, PROMPT), 3, Layout(8, (8, 4)), 1, PROMPT.pad_id)
    last = last_hidden(DECODER, scored.params, jax.tree.map(jax.numpy.asarray, batch.prompts))
    scores = answer_margin(DECODER, scored.params, last, PROMPT.answer_ids)
    pairs = [(group.query, document) for group in groups for document in group.documents]
    predicted = Reranker(DECODER, scored.params, PROMPT).predict(pairs)
    np.testing.assert_allclose(np.asarray(scores).reshape(-1), predicted, atol=1e-5)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ({"queries_per_step": 12}, "score.queries_per_step=12 does not divide over 8 devices; the nearest is 16"),
        (
            {"queries_per_step": 16, "accumulation": 4},
            "score.queries_per_step=16 does not divide over 8 devices x 4 parts of score.accumulation; "
            "the nearest is 32",
        ),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(score, message):
    config = run_config(**score).score
    assert config is not None
    with pytest.raises(InputError) as refused:
        check_score(config, mesh_of(8, 1))
    assert str(refused.value) == f"config: {message}"


# Held-out queries.


COLLECTION = Collection(
    name="made",
    split="dev",
    documents={f"d{i}": f"word{i} common" for i in range(6)},
    queries={f"q{i}": f"word{i} common" for i in range(6)},
    qrels={f"q{i}": {f"d{i}": 1} for i in range(6)},
)


@dataclass
class Backwards:
    """Scores that put the relevant document last."""

    params: Any
    max_length: int = 8

    def predict_chunks(self, chunks, *, instruction=None):
        for pairs in chunks:
            yield np.array([-1.0 if query == document else 1.0 for query, document in pairs], np.float32)


def write(folder: Path) -> None:
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", COLLECTION.documents), ("queries", COLLECTION.queries)):
        lines = [f'{{"_id": "{key}", "text": "{text}"}}\n' for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    (folder / "qrels" / "dev.tsv").write_text("".join(f"q{i}\td{i}\t1\n" for i in range(6)))


def test_held_out_queries_are_drawn_once_and_measured_with_ranks(tmp_path):
    write(tmp_path / "made")
    config = DevConfig(queries=4, depth=3)
    development = Development.open(config, str(tmp_path / "made"), Backwards)
    assert len(development.collection.queries) == 4
    assert list(development.collection.queries) == list(development.run) == list(development.collection.qrels)
    assert development.collection == Development.open(config, str(tmp_path / "made"), Backwards).collection
    assert {len(ranking) for ranking in development.run.values()} == {3}
    assert development.first_stage() == 1.0
    # Third of three: 1 / log2(4).
    assert development.measure({}) == pytest.approx(0.5)
    every = Development.open(DevConfig(queries=None, path=str(tmp_path / "made")), "elsewhere", Backwards)
    assert len(every.collection.queries) == 6


def test_rows_have_no_queries_to_hold_out(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"query": "q", "document": "d", "label": 1}\n')
    place = rf"config: score.dev.path: left out, and data.path={tmp_path}/rows.jsonl is no collection"
    with pytest.raises(InputError, match=place):
        Development.open(DevConfig(), f"{tmp_path}/rows.jsonl", Backwards)
