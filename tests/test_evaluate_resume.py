"""Evaluations that are interrupted, resumed, finished before, or of pairs that were scored before."""

import json
import sqlite3

import numpy as np
import pytest
from made_run import FakeReranker, evaluation

from prorank_jax.data.beir import Collection
from prorank_jax.data.runs import Run
from prorank_jax.errors import InputError
from prorank_jax.evaluate import read_per_query
from prorank_jax.evaluation import rerank

pytestmark = pytest.mark.usefixtures("own_scores")


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


def scores_of(folder):
    """Where an evaluation that shares its scores with no other keeps them."""
    return folder.with_name(f"{folder.name}-scores")


def count(run):
    return sum(map(len, run.values()))


def test_interrupted_work_resumes_and_ends_with_the_same_bytes(tmp_path):
    collection, run = many()
    whole = Stopping({})
    evaluation(whole, collection, run, scores=scores_of(tmp_path / "whole")).write(tmp_path / "whole")
    assert len(whole.asked) == 40
    for stop in range(4):
        out = tmp_path / str(stop)
        with pytest.raises(Stopped):
            evaluation(Stopping({"stop": stop}), collection, run, scores=scores_of(out)).write(out)
        assert not (out / "metrics.json").exists()
        rest = Stopping({})
        resumed = evaluation(rest, collection, run, scores=scores_of(out))
        assert count(resumed.left(out)) == 40 - 10 * stop
        resumed.write(out)
        assert rest.asked == whole.asked[10 * stop :]
        assert files(out) == files(tmp_path / "whole")


def test_finished_work_is_not_done_again_unless_something_has_changed(tmp_path):
    collection, run = many()
    summary = evaluation(FakeReranker({}), collection, run).write(tmp_path)
    before = files(tmp_path)

    again = FakeReranker({})
    assert evaluation(again, collection, run).left(tmp_path) == {}
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
        evaluation(FakeReranker({}), many(depth=6)[0], run),
    ]
    for changed in others:
        changed.write(tmp_path)
        assert len(changed.reranker.asked) == 40
        assert changed.reranker.instructions == {changed.instruction}
    # Another order of the candidates is other figures of the same scores.
    reverse = run | {"q0": run["q0"][::-1]}
    evaluation(again, collection, reverse).write(tmp_path)
    assert again.asked == []
    assert [line.split()[2] for line in (tmp_path / "run.trec").read_text().splitlines()[:5]] == [
        name for name, _ in reverse["q0"]
    ]


@pytest.mark.parametrize("missing", ["run.trec", "per_query.tsv", "metrics.json"])
def test_a_folder_that_lacks_a_file_is_not_finished(tmp_path, missing):
    collection, run = many()
    evaluation(FakeReranker({}), collection, run).write(tmp_path)
    before = files(tmp_path)
    (tmp_path / missing).unlink()
    again = FakeReranker({})
    evaluation(again, collection, run, scores=scores_of(tmp_path)).write(tmp_path)
    assert len(again.asked) == 40
    assert files(tmp_path) == before


def test_a_second_depth_scores_only_new_pairs(tmp_path):
    # As a CPU does, this scores a pair the same whatever is scored with it.
    letters = {str(n): n / 7 for n in range(9)}
    collection, deep = many(depth=9)
    runs = {depth: {query: ranking[:depth] for query, ranking in deep.items()} for depth in (5, 3, 9)}
    for depth, pairs in {5: 40, 3: 0, 9: 32}.items():
        reranker = FakeReranker(letters)
        asked = evaluation(reranker, collection, runs[depth], depth=depth)
        assert count(asked.left(tmp_path / "out")) == pairs
        asked.write(tmp_path / "out")
        assert len(reranker.asked) == pairs
        alone = tmp_path / f"alone-{depth}"
        evaluation(FakeReranker(letters), collection, runs[depth], depth=depth, scores=scores_of(alone)).write(alone)
        assert files(tmp_path / "out") == files(alone)


def test_scores_are_kept_to_the_bit(tmp_path):
    collection, run = many()
    rng = np.random.default_rng(0)
    scores = {name: float(score) for name, score in zip("0123456789", rng.normal(0, 1e-3, 10), strict=True)}
    computed = evaluation(FakeReranker(scores), collection, run).rerank()
    kept = FakeReranker({})
    assert evaluation(kept, collection, run).rerank() == computed
    assert kept.asked == []


def test_scores_depend_on_texts_and_not_on_judgements(tmp_path):
    collection, run = many()
    evaluation(FakeReranker({}), collection, run).write(tmp_path)
    judged = Collection("many", "dev", collection.documents, collection.queries, {"q0": {"d0-0": 1}})
    reworded = Collection("many", "test", collection.documents, collection.queries | {"q1": "new"}, collection.qrels)
    for changed, pairs in ((judged, 0), (reworded, 5)):
        reranker = FakeReranker({})
        evaluation(reranker, changed, run).write(tmp_path)
        assert len(reranker.asked) == pairs


def test_scores_of_another_version_or_device_are_not_used(tmp_path, monkeypatch):
    collection, run = many()
    known = evaluation(FakeReranker({}), collection, run).score_file
    monkeypatch.setattr("prorank_jax.evaluate.__version__", "9")
    assert evaluation(FakeReranker({}), collection, run).score_file != known


def test_other_settings_leave_what_was_begun(tmp_path):
    collection, run = many()
    with pytest.raises(Stopped):
        evaluation(Stopping({"stop": 2}), collection, run).write(tmp_path)
    assert count(evaluation(Stopping({}, digest="other"), collection, run).left(tmp_path)) == 40
    evaluation(Stopping({}, digest="other"), collection, run).write(tmp_path)
    evaluation(Stopping({}, max_length=256), collection, run).write(tmp_path)
    evaluation(None, collection, run).write(tmp_path)
    rest = Stopping({})
    evaluation(rest, collection, run).write(tmp_path)
    assert len(rest.asked) == 20


def test_two_evaluations_at_once_keep_the_scores_of_both(tmp_path):
    collection, run = many()
    halves = [{query: run[query] for query in list(run)[half::2]} for half in range(2)]

    class During(FakeReranker):
        """Another evaluation with the same scores starts and ends while this one has scored some chunks."""

        def predict_chunks(self, chunks, *, instruction=None):
            for number, pairs in enumerate(chunks):
                if number == 1:
                    evaluation(FakeReranker({}), collection, halves[1]).write(tmp_path / "other")
                yield from super().predict_chunks([pairs], instruction=instruction)

    evaluation(During({}), collection, halves[0]).write(tmp_path / "one")
    assert evaluation(FakeReranker({}), collection, run).left(tmp_path) == {}


def test_a_full_disk_costs_one_chunk(tmp_path, monkeypatch):
    collection, run = many(queries=60, depth=8)
    evaluation(Stopping({}), collection, run, scores=scores_of(tmp_path / "whole")).write(tmp_path / "whole")
    connect, file = sqlite3.connect, scores_of(tmp_path / "out")

    def full(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 3")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", full)
        with pytest.raises(
            InputError, match=r"sqlite: cannot be read or written \(database or disk is full\); free sp"
        ):
            evaluation(stopped := Stopping({}), collection, run, scores=file).write(tmp_path / "out")
    rest = Stopping({})
    evaluation(rest, collection, run, scores=file).write(tmp_path / "out")
    # The chunk that did not fit; the next one may have been computed meanwhile.
    assert 0 < 320 - len(rest.asked) <= len(stopped.asked) - 8
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 4080])
def test_a_damaged_score_file_is_refused(tmp_path, content):
    collection, run = many()
    damaged = evaluation(FakeReranker({}), collection, run)
    damaged.score_file.parent.mkdir(exist_ok=True)
    damaged.score_file.write_bytes(content)
    with pytest.raises(InputError, match=r"\.sqlite: is damaged \(.*\); delete it"):
        damaged.write(tmp_path)
    damaged.score_file.unlink()
    damaged.write(tmp_path)


def test_scores_that_cannot_be_kept_are_not_computed(tmp_path):
    (tmp_path / "file").write_text("")
    collection, run = many()
    reranker = FakeReranker({})
    with pytest.raises(InputError, match=r"file/scores: cannot be written \(Not a directory\); .* PRORANK_CACHE"):
        evaluation(reranker, collection, run, scores=tmp_path / "file" / "scores").write(tmp_path)
    assert reranker.asked == []


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
    alone = scores_of(tmp_path / "whole")
    evaluation(Stopping({}), collection, run, scores=alone).write(tmp_path / "whole")
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
