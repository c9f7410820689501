"""Evaluations that are cut, gone on with, finished before, or begun with other settings."""

import json

import numpy as np
import pytest
from made_run import FakeReranker, evaluation

from prorank_jax.data.beir import Collection
from prorank_jax.data.runs import Run
from prorank_jax.errors import InputError
from prorank_jax.evaluate import read_per_query
from prorank_jax.evaluation import rerank


def many(queries: int = 12, depth: int = 5) -> tuple[Collection, Run]:
    """Queries with candidates of their own, and every third without any."""
    names = {f"q{n}": [f"d{n}-{rank}" for rank in range(depth)] for n in range(queries)}
    documents = {name: f"text of {name}" for of_query in names.values() for name in of_query}
    qrels = {query: {of_query[n % depth]: 1} for n, (query, of_query) in enumerate(names.items())}
    collection = Collection("many", "test", documents, {query: f"query {query}" for query in names}, qrels)
    run = {
        query: [] if n % 3 == 2 else [(name, float(depth - rank)) for rank, name in enumerate(of_query)]
        for n, (query, of_query) in enumerate(names.items())
    }
    return collection, run


class Stopped(Exception):
    pass


class Stopping(FakeReranker):
    """Stops before a chunk; its scores depend on the chunk that they are computed in, as rounding does."""

    def predict_chunks(self, chunks, *, instruction=None):
        for number, pairs in enumerate(chunks):
            if number == self.scores.get("stop"):
                raise Stopped
            self.asked.extend(pairs)
            yield np.array([len(pairs) + sum(map(ord, document)) % 37 / 7 for _, document in pairs], np.float32)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    # Of 8 pairs or just above: the chunks are 10 pairs of 2 queries, then of 3, since every third query is empty.
    monkeypatch.setattr(rerank, "CHUNK_TOKENS", 8 * 128)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_work_that_was_cut_goes_on_and_ends_with_the_same_bytes(tmp_path):
    collection, run = many()
    whole = Stopping({})
    evaluation(whole, collection, run).write(tmp_path / "whole")
    assert len(whole.asked) == 40
    for stop in range(4):
        out = tmp_path / str(stop)
        with pytest.raises(Stopped):
            evaluation(Stopping({"stop": stop}), collection, run).write(out)
        assert not (out / "metrics.json").exists()
        assert evaluation(Stopping({}), collection, run).queries_done(out) == [0, 2, 5, 8][stop]
        # What a process was writing when it was killed.
        with (out / "run.trec.part").open("ab") as file:
            file.write(b"q9\td9-0\t1.")
        rest = Stopping({})
        evaluation(rest, collection, run).write(out)
        assert rest.asked == whole.asked[10 * stop :]
        assert files(out) == files(tmp_path / "whole")


def test_finished_work_is_not_done_again_unless_something_has_changed(tmp_path):
    collection, run = many()
    summary = evaluation(FakeReranker({}), collection, run).write(tmp_path)
    before = files(tmp_path)

    again = FakeReranker({})
    assert evaluation(again, collection, run).queries_done(tmp_path) == 12
    assert evaluation(again, collection, run).write(tmp_path) == summary
    other = evaluation(again, collection, run, metrics=("precision@5", "ndcg@10")).write(tmp_path)
    assert again.asked == []
    assert list(other["metrics"]) == ["precision@5", "ndcg@10"]
    assert other["metrics"]["ndcg@10"] == summary["metrics"]["ndcg@10"]
    # Of five candidates one is relevant, for two queries of three.
    assert other["metrics"]["precision@5"] == pytest.approx(2 / 3 / 5)
    evaluation(again, collection, run).write(tmp_path)
    assert files(tmp_path) == before
    assert again.asked == []

    others = [
        evaluation(FakeReranker({}, digest="other weights"), collection, run),
        evaluation(FakeReranker({}, max_length=256), collection, run),
        evaluation(FakeReranker({}, dtype="float32"), collection, run),
        evaluation(FakeReranker({}), collection, run, instruction="task"),
        evaluation(FakeReranker({}), collection, run | {"q0": run["q0"][::-1]}),
        evaluation(FakeReranker({}), many(depth=6)[0], run),
    ]
    for changed in others:
        changed.write(tmp_path)
        assert len(changed.reranker.asked) == 40
        assert changed.reranker.instructions == {changed.instruction}


@pytest.mark.parametrize("missing", ["run.trec", "per_query.tsv", "metrics.json"])
def test_a_folder_that_lacks_a_file_is_not_finished(tmp_path, missing):
    collection, run = many()
    evaluation(FakeReranker({}), collection, run).write(tmp_path)
    before = files(tmp_path)
    (tmp_path / missing).unlink()
    again = FakeReranker({})
    evaluation(again, collection, run).write(tmp_path)
    assert len(again.asked) == 40
    assert files(tmp_path) == before


def test_other_settings_do_not_go_on_with_what_was_begun(tmp_path):
    collection, run = many()
    with pytest.raises(Stopped):
        evaluation(Stopping({"stop": 2}), collection, run).write(tmp_path)
    begun = files(tmp_path)
    assert evaluation(Stopping({}, digest="other"), collection, run).queries_done(tmp_path) == 0
    with pytest.raises(
        InputError, match=r"run.trec.part: was begun with other settings: --max-length changed \(128 ->"
    ):
        evaluation(Stopping({}, max_length=256), collection, run).write(tmp_path)
    with pytest.raises(InputError, match="the model changed; delete"):
        evaluation(Stopping({}, digest="other"), collection, run).write(tmp_path)
    assert files(tmp_path) == begun


def test_what_another_model_has_begun_in_the_folder_stays(tmp_path):
    collection, run = many()
    done = evaluation(FakeReranker({}), collection, run)
    done.write(tmp_path)
    with pytest.raises(Stopped):
        evaluation(Stopping({"stop": 2}, digest="other"), collection, run).write(tmp_path)
    begun = (tmp_path / "run.trec.part").read_bytes()
    done.write(tmp_path)
    evaluation(None, collection, run).write(tmp_path)
    assert (tmp_path / "run.trec.part").read_bytes() == begun
    rest = Stopping({}, digest="other")
    evaluation(rest, collection, run).write(tmp_path)
    assert len(rest.asked) == 20


def test_a_full_disk_costs_the_chunk_at_hand_alone(tmp_path, monkeypatch):
    collection, run = many()
    evaluation(Stopping({}), collection, run).write(tmp_path / "whole")
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        # Each chunk, and what is noted of it behind it, and once before the first: this is the third chunk.
        if len(calls) == 6:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"run.trec.part: cannot be written \(No space left on device\); make room"):
        evaluation(Stopping({}), collection, run).write(tmp_path / "out")
    rest = Stopping({})
    evaluation(rest, collection, run).write(tmp_path / "out")
    assert len(rest.asked) == 20
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_disk_that_is_full_at_the_end_leaves_no_figures_and_costs_no_score(tmp_path, monkeypatch):
    collection, run = many()

    def full(path, run, tag):
        raise OSError(28, "No space left on device")

    # Figures of before, which are not those of what is half-written.
    evaluation(FakeReranker({}, digest="older"), collection, run).write(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("prorank_jax.evaluate.write_run", full)
        with pytest.raises(InputError, match="cannot be written .No space left on device.; make room"):
            evaluation(Stopping({}), collection, run).write(tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.json").exists()
    rest = Stopping({})
    evaluation(rest, collection, run).write(tmp_path / "out")
    assert rest.asked == []
    evaluation(Stopping({}), collection, run).write(tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_per_query_figures_are_kept_to_the_last_digit(tmp_path):
    collection, run = many()
    summary = evaluation(Stopping({}), collection, run).write(tmp_path)
    for metric, mean in summary["metrics"].items():
        values = read_per_query(tmp_path, metric)
        assert values.shape == (12,)
        assert values.mean() == mean
        assert read_per_query(tmp_path, metric, first_stage=True).mean() == summary["first_stage"][metric]
    assert (tmp_path / "per_query.tsv").read_text().splitlines()[3].startswith("q2\t0.0\t0.0")
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
