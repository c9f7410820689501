"""The scores that a run keeps of a sample: whose they are, that they survive a kill, and that they change nothing."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prorank_jax.config import RunConfig
from prorank_jax.config_file import parse_config
from prorank_jax.data.beir import Collection
from prorank_jax.data.examples import Example
from prorank_jax.errors import InputError
from prorank_jax.reranker import Reranker
from prorank_jax.runtime.metrics import TIME_FIELDS, read_metrics
from prorank_jax.scoring import record
from prorank_jax.scoring.record import SCORES, ScoreRecord, draw, read_scores, sample_size
from prorank_jax.train import train

pytestmark = pytest.mark.usefixtures("fast_compilation")

STAGES = ("warmup", "score")


@pytest.fixture(scope="module")
def config(tiny_model: Path, tiny_collection: Path) -> RunConfig:
    often = {"steps": 4, "log_every": 1, "checkpoint_every": 2, "optimizer": {"learning_rate": 1e-2}}
    return parse_config(
        {
            "seed": 1,
            "model": {"base": str(tiny_model)},
            "prompt": {"max_length": 112},
            "data": {"path": str(tiny_collection / "train"), "depth": 12},
            "warmup": {"method": "supervised", "prompts_per_step": 16, **often},
            "score": {"queries_per_step": 16, "documents_per_query": 2, **often},
        }
    )


@pytest.fixture(scope="module")
def examples(config: RunConfig) -> list[Example]:
    """What the sample must be: the first pairs of the seed's stream."""
    from prorank_jax.data.mixture import open_mixture
    from prorank_jax.data.stream import pairs

    sources, weights, _ = open_mixture(config.data, Path())
    # 64 prompts of warmup and 128 of score learning, one pair for 24 of them.
    return pairs(sources, weights, 1).rows(range(8))


@pytest.fixture(scope="module")
def undisturbed(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    scores = ScoreRecord._scores

    def counted(self: ScoreRecord, params: Any) -> np.ndarray:
        with (workdir.parent / "scored").open("a") as file:
            file.write("x")
        return scores(self, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoreRecord, "_scores", counted)
        train(config, workdir)
    return workdir


def scores_of(workdir: Path, stage: str, at: str) -> list[float]:
    return [row["score"] for row in read_scores(workdir / stage / SCORES) if row["at"] == at]


def rows(workdir: Path, stage: str) -> list[dict[str, Any]]:
    found = read_metrics(workdir / stage / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIME_FIELDS} for row in found]


def test_the_scores_are_those_of_the_models_that_stages_begin_and_end_with(
    undisturbed: Path, tiny_model: Path, examples: list[Example]
) -> None:
    texts = [(example.query, example.document) for example in examples]
    base = Reranker.from_pretrained(str(tiny_model), max_length=112).predict(texts)
    trained = Reranker.from_pretrained(str(undisturbed / "export")).predict(texts)
    np.testing.assert_allclose(scores_of(undisturbed, "warmup", "begin"), base, atol=1e-4)
    np.testing.assert_allclose(scores_of(undisturbed, "score", "end"), trained, atol=1e-4)
    assert scores_of(undisturbed, "warmup", "end") == scores_of(undisturbed, "score", "begin")
    assert np.abs(base - scores_of(undisturbed, "warmup", "end")).max() > 0.01
    assert np.abs(trained - scores_of(undisturbed, "score", "begin")).max() > 0.01
    first, *_ = found = read_scores(undisturbed / "warmup" / SCORES)
    assert [row["label"] for row in found] == [example.label for example in examples] * 2
    assert list(first) == ["at", "of", "label", "score"] and first["of"] == "training pairs"


# The second call is of two moments: the end of the warmup, and the begin of score learning.
@pytest.mark.parametrize(("moment", "moments"), [(1, 1), (2, 3)])
def test_a_run_that_was_killed_between_any_two_moments_ends_with_the_same_bytes(
    undisturbed: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, moments: int
) -> None:
    workdir, count, keep = tmp_path / "run", 0, ScoreRecord.keep

    def killed(self: ScoreRecord, *arguments: Any) -> None:
        nonlocal count
        if count == moment:
            raise KeyboardInterrupt
        count += 1
        keep(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ScoreRecord, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, workdir)
    assert sum(len(read_scores(workdir / stage / SCORES)) for stage in STAGES) == 8 * moments
    train(config, workdir)
    for stage in STAGES:
        assert (workdir / stage / SCORES).read_bytes() == (undisturbed / stage / SCORES).read_bytes()


def test_what_is_there_is_not_computed_again(
    undisturbed: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScoreRecord, "_scores", lambda *_: pytest.fail("computed again"))
    train(config, undisturbed)


@pytest.mark.parametrize("lost", [(), ("warmup",), ("score",)])
def test_a_model_between_two_stages_is_scored_once(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: tuple[str, ...]
) -> None:
    room: Any = SimpleNamespace(keep_trying=lambda _, write: write())
    sample = record.Sample("training pairs", [Example("q", "d", label) for label in (1, 0)])
    calls: list[object] = []

    def scores(_: ScoreRecord, params: object) -> np.ndarray:
        calls.append(params)
        return np.array([0.5, len(calls)], np.float32)

    monkeypatch.setattr(ScoreRecord, "_scores", scores)
    reranker: Any = None
    moments: list[tuple[Path, record.Moment]] = [(tmp_path / "warmup", "end"), (tmp_path / "score", "begin")]
    for _ in range(2):
        ScoreRecord(reranker, sample, room).keep({}, *moments)
        for folder, at in moments:
            found = read_scores(folder / SCORES)
            assert [(row["at"], row["label"], row["score"]) for row in found] == [(at, 1, 0.5), (at, 0, 1.0)]
        # Of a run that was killed between the two files, the one that is lost is written again from the other.
        for stage in lost:
            (tmp_path / stage / SCORES).unlink()
    assert len(calls) == 1


def test_a_run_scores_its_sample_three_times(undisturbed: Path) -> None:
    assert (undisturbed.parent / "scored").read_text() == "xxx"


def test_keeping_scores_changes_nothing_that_is_learnt(
    undisturbed: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScoreRecord, "keep", lambda *_: None)
    train(config, tmp_path / "run")
    weights = "export/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (undisturbed / weights).read_bytes()
    for stage in STAGES:
        assert rows(tmp_path / "run", stage) == rows(undisturbed, stage)
        assert not (tmp_path / "run" / stage / SCORES).exists()


def test_the_sample_is_bounded_by_what_a_run_learns_from() -> None:
    def size(**stages: Any) -> int:
        tree = {"model": {"base": "x"}, "data": {"path": "y"}}
        return sample_size(parse_config(tree | stages))

    assert size(warmup={"steps": 3}) == 4  # 96 prompts
    assert size(score={"steps": 1, "queries_per_step": 1, "documents_per_query": 2}) == 2
    assert size(warmup={"steps": 300}, score={"steps": 300}) == 512


COLLECTION = Collection(
    name="made",
    split="dev",
    documents={name: f"text {name}" for name in "abcdef"},
    queries={"p": "query p", "q": "query q"},
    qrels={"p": {"a": 1, "b": 0}, "q": {"c": 2, "gone": 1}},
)
RUN = {"p": [("a", 3.0), ("b", 2.0), ("d", 1.0)], "q": [("c", 1.0), ("e", 0.5)]}


@pytest.fixture
def short() -> RunConfig:
    return parse_config({"model": {"base": "x"}, "data": {"path": "y"}, "score": {"steps": 30}})


def test_held_out_queries_come_before_training_pairs(short: RunConfig) -> None:
    of, examples = draw(short, (COLLECTION, RUN), (), ())
    assert of == "held-out queries"
    told = [(example.query[-1] + example.document[-1], example.label) for example in examples]
    # A document that is gone has no text, and one that was judged 0 is as good as one that nobody judged.
    assert told == [("pb", 0), ("pd", 0), ("qe", 0), ("pa", 1), ("qc", 1)]


def test_a_sample_that_cannot_be_drawn_is_empty(short: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def pairs(*_: Any) -> Any:
        raise InputError("no irrelevant document")

    monkeypatch.setattr(record, "pairs", pairs)
    relevant_alone: Any = {query: ranking[:1] for query, ranking in RUN.items()}
    assert draw(short, (COLLECTION, relevant_alone), (), ()) == ("training pairs", [])


@pytest.mark.parametrize("content", [b"", b'{"at": "begin"}\n', b'{"at": "begin", "lab', b"\xff\n", b"[]\n"])
def test_a_file_that_no_stage_wrote_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SCORES).write_bytes(content)
    assert read_scores(tmp_path / SCORES) == []


def test_what_is_not_finite_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker: Any = None
    room: Any = SimpleNamespace(keep_trying=lambda _, write: write())
    sample = record.Sample("training pairs", [Example("q", "d", label) for label in (1, 0)])
    monkeypatch.setattr(ScoreRecord, "_scores", lambda *_: np.array([np.nan, 1 / 3], np.float32))
    moments: tuple[record.Moment, ...] = ("end", "begin", "end")
    for at in moments:
        ScoreRecord(reranker, sample, room).keep({}, (tmp_path / "stage", at))
    written = [json.loads(line) for line in (tmp_path / "stage" / SCORES).read_text().splitlines()]
    assert [(row["at"], row["score"]) for row in written] == [
        ("begin", None), ("begin", 0.3333), ("end", None), ("end", 0.3333),
    ]  # fmt: skip
