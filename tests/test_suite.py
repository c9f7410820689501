"""`prorank evaluate` of several collections and models: folders, tables, estimates, fusion, and work that is killed."""

import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from conftest import Prorank
from safetensors.numpy import load_file, save_file

from prorank_jax.cache import cache_folder
from prorank_jax.data.beir import read_beir
from prorank_jax.data.bm25 import bm25_run
from prorank_jax.data.ndcg import ndcg_at_10
from prorank_jax.data.runs import read_run, write_run
from prorank_jax.errors import InputError
from prorank_jax.evaluate import read_per_query
from prorank_jax.evaluation import first_stage, folder
from prorank_jax.evaluation.score_cache import ScoreCache
from prorank_jax.evaluation.suites import BUILTIN, load_suite
from prorank_jax.reranker import Reranker
from prorank_jax.suite import Folders, Model, Settings, Suite, name_models

# Scores that another test has kept are not computed.
pytestmark = pytest.mark.usefixtures("own_scores", "fast_compilation")


@pytest.fixture
def suite(tmp_path: Path, tiny_collection: Path) -> Path:
    """Two collections: `train`, of which `dev` has other queries than `test`, and `other`."""
    train = shutil.copytree(tiny_collection / "train", tmp_path / "first")
    heading, *lines = (train / "qrels" / "train.tsv").read_text().splitlines()
    names = list(dict.fromkeys(line.partition("\t")[0] for line in lines))
    for split, kept in (("test", names[:3]), ("dev", names[3:])):
        of_split = [line for line in lines if line.partition("\t")[0] in kept]
        (train / "qrels" / f"{split}.tsv").write_text("\n".join([heading, *of_split]) + "\n")
    other = shutil.copytree(tiny_collection / "test", tmp_path / "other")
    path = tmp_path / "mine.yaml"
    tree = {"collections": [str(train), {"data": str(other), "depth": 7, "instruction": "Find it."}]}
    path.write_text(yaml.safe_dump(tree))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def table(text: str) -> dict[str, dict[str, str]]:
    """Row -> column -> cell of the first Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    grid = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(grid[0][1:], row[1:], strict=True)) for row in grid[2:]}


def number(cell: str) -> float:
    return float(re.sub(r"[*†]", "", cell))


def test_two_models_on_two_collections(
    prorank: Prorank, tiny_model: Path, untied_model: Path, suite: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("evaluate", tiny_model, "--model", f"other={untied_model}", "--suite", suite, "--depth", 12)
    status, printed, err = prorank(*arguments, "--max-length", 120, "--out", out, "--metrics", "ndcg@10,precision@5")
    assert status == 0
    label = tiny_model.resolve().name
    slugs = ["first-test", "other-test"]
    rows = table(printed)
    assert list(rows) == [*slugs, "average of all 2"]
    assert list(rows["first-test"]) == ["first-stage", label, "other", "oracle"]

    for slug, depth in zip(slugs, (12, 7), strict=True):
        collection = read_beir(tmp_path / slug.removesuffix("-test"), "test")
        run = bm25_run(collection, depth)
        assert number(rows[slug]["first-stage"]) == pytest.approx(ndcg_at_10(collection.qrels, run), abs=5.1e-5)
        for model in (label, "other"):
            ranked = read_run(out / model / slug / "run.trec")
            figure = ndcg_at_10(collection.qrels, ranked)
            assert number(rows[slug][model]) == pytest.approx(figure, abs=5.1e-5)
            assert {q: {d for d, _ in r} for q, r in ranked.items()} == {q: {d for d, _ in r} for q, r in run.items()}
            summary = json.loads((out / model / slug / "metrics.json").read_text())
            assert list(summary["metrics"]) == ["ndcg@10", "precision@5"]
            assert summary["protocol"]["instruction"] == (None if slug == "first-test" else "Find it.")
            assert read_per_query(out / model / slug, "ndcg@10").mean() == pytest.approx(figure, abs=1e-9)
    for column in ("first-stage", label, "other", "oracle"):
        mean = sum(number(rows[slug][column]) for slug in slugs) / 2
        assert number(rows["average of all 2"][column]) == pytest.approx(mean, abs=1.1e-4)
    assert f"{label}, first-test: 36 pairs, " in err and "other, all: 64 pairs, " in err

    summary = json.loads((out / "summary.json").read_text())
    assert summary["figures"]["other"]["first-test"] == json.loads(
        (out / "other" / "first-test" / "metrics.json").read_text()
    )
    of_queries = [line.split("\t") for line in (out / "first-test.ndcg@10.tsv").read_text().splitlines()]
    assert of_queries[0][1:4] == ["first-stage", label, "other"] and "other - first-stage" in of_queries[0]
    for row in of_queries[1:]:
        cells = dict(zip(of_queries[0][1:], map(float, row[1:]), strict=True))
        assert cells["other - first-stage"] == cells["other"] - cells["first-stage"]
    assert [row[0] for row in of_queries[1:]] == list(read_beir(tmp_path / "first", "test").qrels)

    compared = {(one["run"], one["baseline"]) for one in summary["comparisons"]["first-test"]}
    assert compared == {(label, "first-stage"), ("other", "first-stage"), ("other", label)}
    shown, _, last = printed.rstrip("\n").rpartition("\n")
    assert last == f"figures, runs and tables: {out}"
    assert (out / "report.md").read_text().startswith(shown.rstrip("\n"))
    for name in ("report.md", "report.tex", "report.html"):
        text = (out / name).read_text()
        # A table for each metric.
        assert text.count("depth: 12 (first-test), 7 (other-test)") == 2
        for slug in slugs:
            assert f"{number(rows[slug]['other']):.4f}" in text

    # Again: nothing is reranked, and nothing changes.
    before = files(out)
    status, again, err = prorank(*arguments, "--max-length", 120, "--out", out, "--metrics", "ndcg@10,precision@5")
    assert (status, again) == (0, printed)
    assert err == f"{label}: nothing is left to rerank\nother: nothing is left to rerank\n"
    assert files(out) == before


def test_two_splits_of_a_collection_are_averaged_as_two(prorank: Prorank, suite: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.yaml"
    entries = [{"data": str(tmp_path / "first"), "split": split} for split in ("test", "dev")]
    both.write_text(yaml.safe_dump({"collections": entries}))
    status, printed, _ = prorank("evaluate", "--first-stage-only", "--suite", both, "--out", tmp_path / "out")
    assert status == 0
    rows = {name: number(cells["first-stage"]) for name, cells in table(printed).items()}
    assert rows["average of all 2"] == pytest.approx((rows["first-test"] + rows["first-dev"]) / 2, abs=1.1e-4)
    assert "average of all 2: over first-test, first-dev." in printed


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many pairs were scored since the last call."""
    counts, add = [0], ScoreCache.add

    def counted(self: ScoreCache, scores: Any) -> None:
        rows = list(scores)
        counts.append(len(rows))
        add(self, rows)

    def since() -> int:
        count = sum(counts)
        counts.clear()
        return count

    monkeypatch.setattr(ScoreCache, "add", counted)
    return since


def test_other_depths_and_metrics_score_only_new_pairs(
    prorank: Prorank,
    tiny_model: Path,
    untied_model: Path,
    suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scored: Callable[[], int],
    own_scores: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("--data", tmp_path / "first", "--max-length", 120)
    models, out = ("evaluate", f"tiny={tiny_model}"), tmp_path / "evaluation" / "tiny" / "first-test"

    def figures(folder: Path) -> dict[str, bytes]:
        return {name: (folder / name).read_bytes() for name in ("run.trec", "per_query.tsv", "metrics.json")}

    made = {}
    # Of three queries: all, none that is new, none, and eight each.
    for options, pairs in {
        ("--depth", 12): 36,
        ("--depth", 5): 0,
        ("--depth", 5, "--metrics", "recall@3"): 0,
        ("--depth", 20): 24,
    }.items():
        status, _, err = prorank(*models, *data, *options)
        assert status == 0 and scored() == pairs
        assert (f"tiny, first-test: {pairs} pairs, " if pairs else "tiny: nothing is left to rerank\n") in err
        made[options] = figures(out)

    # Nor in another folder, next to another model.
    assert prorank(*models, "--model", f"other={untied_model}", *data, "--depth", 12)[0] == 0
    assert scored() == 36
    assert figures(tmp_path / "evaluation" / "first-test" / "tiny" / "first-test") == made["--depth", 12]

    # Several depths in one list: depth 30 has ten new pairs a query, and the others have none that it lacks.
    listed = tmp_path / "depths.yaml"
    entries = [{"data": str(tmp_path / "first"), "depth": depth} for depth in (30, 5, 25)]
    listed.write_text(yaml.safe_dump({"collections": entries}))
    arguments = (*models, "--suite", listed, "--max-length", 120, "--out", tmp_path / "depths")
    dry = prorank(*arguments, "--dry-run")[1]
    assert dry.startswith("tiny, first-test-top30: 30 pairs, ") and dry.count("\n") == 1 and scored() == 0
    status, printed, _ = prorank(*arguments)
    assert list(table(printed))[:3] == ["first-test-top30", "first-test-top5", "first-test-top25"]
    assert scored() == 30
    assert figures(tmp_path / "depths" / "tiny" / "first-test-top5") == made["--depth", 5]

    # Without any scores it ends with the same bytes.
    for options, pairs in {("--depth", 5): 15, ("--depth", 20): 60}.items():
        shutil.rmtree(own_scores)
        alone = tmp_path / "alone" / str(pairs)
        assert prorank(*models, *data, *options, "--out", alone)[0] == 0
        assert scored() == pairs
        assert figures(alone) == made[options]


def test_each_model_is_loaded_once_and_alone(tmp_path: Path) -> None:
    class Fake:
        """A model in memory."""

    loaded: list[str] = []
    alive: weakref.WeakSet[Fake] = weakref.WeakSet()
    checked: list[str] = []

    def load(model: Model) -> Any:
        assert not alive, f"{model.label} is loaded beside another one"
        loaded.append(model.label)
        alive.add(fake := Fake())
        return fake

    models = [Model(name, name) for name in "abc"]
    systems = Suite((), Folders(tmp_path), Settings(), print).measure(
        models, load, lambda *_: None, check=lambda model: checked.append(model.label)
    )
    assert loaded == ["a", "b", "c"] and checked == ["b", "c"]
    assert [system.label for system in systems] == loaded


def test_a_model_is_freed_before_the_next_is_loaded(
    prorank: Prorank,
    tiny_model: Path,
    untied_model: Path,
    suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[weakref.ref[Reranker]] = []
    in_use: list[int] = []
    load = Reranker.from_pretrained

    def noted(*arguments: Any, **options: Any) -> Reranker:
        gc.collect()
        assert all(reference() is None for reference in loaded)
        in_use.append(sum(array.nbytes for array in jax.live_arrays()))
        reranker = load(*arguments, **options)
        loaded.append(weakref.ref(reranker))
        return reranker

    monkeypatch.setattr(Reranker, "from_pretrained", noted)
    models = ("evaluate", "--model", f"a={tiny_model}", "--model", f"b={untied_model}")
    arguments = (*models, "--suite", suite, "--depth", 12, "--max-length", 120, "--out", tmp_path / "out")
    assert prorank(*arguments, "--dry-run")[0] == 0
    assert prorank(*arguments, "--fuse", "dev")[0] == 0
    assert len(loaded) == 4
    # Of each of the 40,000 weights there is nothing left.
    assert max(in_use) - in_use[0] < 40_000


def test_candidates_are_read_and_hashed_once(
    prorank: Prorank, tiny_model: Path, untied_model: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(collection: Any, *arguments: Any, **options: Any) -> Any:
            calls.append(f"{name} {collection.name}-{collection.split}")
            return function(collection, *arguments, **options)

        return call

    monkeypatch.setattr("prorank_jax.suite.kept_candidates", counted("read", first_stage.kept_candidates))
    monkeypatch.setattr(folder.Digests, "of", counted("hashed", folder.Digests.of))
    arguments = ("evaluate", f"a={tiny_model}", "--model", f"b={untied_model}", "--suite", suite, "--fuse", "dev")
    assert prorank(*arguments, "--depth", 5, "--max-length", 120, "--out", tmp_path / "out")[0] == 0
    assert sorted(calls) == sorted(
        f"{what} {name}" for what in ("read", "hashed") for name in ("first-test", "first-dev", "other-test")
    )


def test_a_dry_run_says_what_is_left_and_reranks_nothing(
    prorank: Prorank, tiny_model: Path, suite: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", tiny_model, "--depth", 12, "--max-length", 120, "--out", tmp_path / "out")
    status, out, _ = prorank(*arguments, "--suite", suite, "--dry-run")
    assert status == 0
    first, other, every = out.splitlines()
    label = tiny_model.resolve().name
    pattern = r"{}: {} pairs, ([\d,]+) tokens, about \d+ s"
    counts = [
        int(re.fullmatch(pattern.format(re.escape(f"{label}, {name}"), pairs), line)[1].replace(",", ""))  # type: ignore
        for name, pairs, line in (("first-test", 36, first), ("other-test", 28, other), ("all", 64, every))
    ]
    # Prompts of up to 120 tokens; the template alone has more than 40.
    assert 36 * 40 < counts[0] <= 36 * 120
    assert counts[2] == counts[0] + counts[1]
    assert not (tmp_path / "out" / label).exists()


def test_fusion_is_tuned_on_the_split_that_it_names(
    prorank: Prorank, tiny_model: Path, suite: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("evaluate", f"tiny={tiny_model}", "--suite", suite, "--depth", 12, "--max-length", 120)
    status, printed, _ = prorank(*arguments, "--out", out, "--fuse", "dev")
    assert status == 0
    rows = table(printed)
    assert list(rows["first-test"]) == ["first-stage", "tiny", "tiny+first-stage", "oracle"]
    # `other` has no split dev.
    assert rows["other-test"]["tiny+first-stage"] == "—"
    protocol = json.loads((out / "tiny+first-stage" / "first-test" / "metrics.json").read_text())["protocol"]
    weights = protocol["fusion"]
    assert weights["tuned_on"] == "dev"

    def fused(split: str, weight: float) -> float:
        """By the definition: scores of each query between 0 and 1, added up."""
        collection = read_beir(tmp_path / "first", split)
        runs = [read_run(out / "first-stage" / f"first-{split}" / "first_stage.trec")]
        runs.append(read_run(out / "tiny" / f"first-{split}" / "run.trec"))
        both = {}
        for query_id, ranking in runs[0].items():
            names = [name for name, _ in ranking]
            first, second = (np.array([dict(run[query_id])[name] for name in names]) for run in runs)
            scores = (1 - weight) * (first - first.min()) / np.ptp(first)
            scores += weight * (second - second.min()) / np.ptp(second)
            both[query_id] = [(names[i], 0.0) for i in np.argsort(-scores.round(9), kind="stable")]
        return ndcg_at_10(collection.qrels, both)

    tuned = {tenths / 10: fused("dev", tenths / 10) for tenths in range(11)}
    assert tuned[weights["reranker"]] == pytest.approx(max(tuned.values()), abs=1e-9)
    assert number(rows["first-test"]["tiny+first-stage"]) == pytest.approx(
        fused("test", weights["reranker"]), abs=5.1e-5
    )
    assert f"first-test {weights['first_stage']:g} + {weights['reranker']:g} (tuned on dev)" in printed


def test_models_are_called_as_their_folders(tmp_path: Path) -> None:
    export = tmp_path / "runs" / "best" / "export"
    export.mkdir(parents=True)
    assert name_models([str(export), "owner/model-2", "builtin:tiny", f"b={export}"]) == [
        Model("best", str(export)),
        Model("owner-model-2", "owner/model-2"),
        Model("builtin-tiny", "builtin:tiny"),
        Model("b", str(export)),
    ]
    with pytest.raises(InputError, match="'best' names another column already; write --model NAME="):
        name_models([str(export), str(export)])
    with pytest.raises(InputError, match="'first-stage' names another"):
        name_models([f"first-stage={export}"])


def test_the_suites() -> None:
    beir, nano = ([entry.data for entry in BUILTIN[name].collections] for name in ("beir", "nano-beir"))
    assert len(beir) == len(set(beir)) == 25 and len(nano) == len(set(nano)) == 13
    assert "beir/msmarco" not in beir and "beir/cqadupstack/wordpress" in beir
    assert load_suite("beir") is BUILTIN["beir"]


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({}, "mine.yaml: collections: missing"),
        ({"collections": []}, "mine.yaml: collections=[]: tuple should have at least 1 item"),
        ({"collections": ["a"], "depth": 3}, "mine.yaml: depth: unknown key; known here: collections"),
        ({"collections": [{"data": "a", "splt": "x"}]}, "collections.0.splt: unknown key; did you mean 'split'?"),
        ({"collections": [{"data": "a", "depth": 0}]}, "collections.0.depth=0: input should be greater than"),
        ({"collections": [7]}, "mine.yaml: collections.0=7: "),
        ({"collections": ["beir/scifactt"]}, "'beir/scifactt': no such folder, zip or collection; did you mean"),
    ],
)
def test_a_wrong_suite(refused: Callable[..., str], tmp_path: Path, tree: Any, told: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert told in refused("evaluate", "--first-stage-only", "--suite", path)


def test_other_refusals(refused: Callable[..., str], tiny_collection: Path, suite: Path, tmp_path: Path) -> None:
    def told(*arguments: object) -> str:
        return refused("evaluate", "--first-stage-only", *arguments)

    assert told("--suite", "beer") == "--suite='beer': no such suite or file; use beir, nano-beir, or a YAML file"
    assert "--split=dev: has no meaning with --suite" in told("--suite", suite, "--split", "dev")
    assert told("--suite", suite, "--fuse", "dev").startswith("--fuse: has no meaning with --first-stage-only")
    assert told("--suite", suite, "--dry-run").startswith("--dry-run: has no meaning with --first-stage-only")
    tuned = ("evaluate", "builtin:tiny", "--suite", suite, "--fuse")
    assert "--fuse=devel: no collection has this split" in refused(*tuned, "devel")
    assert "is the split of" in refused(*tuned, "test")
    assert "ndcg" in told("--suite", suite, "--metrics", "ncdg@10")
    twice = tmp_path / "twice.yaml"
    twice.write_text(yaml.safe_dump({"collections": [str(tiny_collection / "test")] * 2}))
    assert "test-test is what" in told("--suite", twice)


def test_a_run_by_name_and_by_pattern(prorank: Prorank, suite: Path, tmp_path: Path) -> None:
    """Each collection has its own run, as one that another tool wrote."""
    for name in ("first", "other"):
        collection = read_beir(tmp_path / name, "test")
        reverse = {query: [(d, -s) for d, s in ranking[::-1]] for query, ranking in bm25_run(collection, 5).items()}
        (tmp_path / name / "runs").mkdir()
        write_run(tmp_path / name / "runs" / "dense.test.trec", reverse, tag="x")
        shutil.copy(tmp_path / name / "runs" / "dense.test.trec", tmp_path / f"dense-{name}-test.trec")
    arguments = ("evaluate", "--first-stage-only", "--suite", suite)
    printed = [
        prorank(*arguments, "--first-stage", source, "--out", tmp_path / "out" / str(number))[1]
        for number, source in enumerate(["dense", f"{tmp_path}/dense-{{collection}}-{{split}}.trec"])
    ]
    rows = [table(text) for text in printed]
    assert rows[0] == rows[1]
    collection = read_beir(tmp_path / "first", "test")
    expected = ndcg_at_10(collection.qrels, read_run(tmp_path / "first" / "runs" / "dense.test.trec"))
    assert number(rows[0]["first-test"]["first-stage"]) == pytest.approx(expected, abs=5.1e-5)


KILLED = """
import os, signal, sys
from pathlib import Path
from prorank_jax.cli import main
from prorank_jax.evaluation import rerank, score_cache

log, stop, out = Path(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv[-1]
rerank.CHUNK_TOKENS = 120 * 10
moments = 0

def moment():
    global moments
    moments += 1
    log.write_text(str(moments))
    if moments == stop:
        os.kill(os.getpid(), signal.SIGKILL)

def noticed(function, of_interest):
    def call(*arguments):
        if not of_interest(*arguments):
            return function(*arguments)
        moment()
        found = function(*arguments)
        moment()
        return found
    return call

os.fsync = noticed(os.fsync, lambda descriptor: True)
os.replace = noticed(os.replace, lambda source, to: str(to).startswith(out))
# Each row of a chunk of scores, of which SQLite has written none or some; and a chunk.
rows = score_cache._key
score_cache.ScoreCache.add = noticed(score_cache.ScoreCache.add, lambda cache, scores: True)
score_cache._key = noticed(rows, lambda query: True)
main()
"""


def test_killed_five_times_at_random_it_ends_with_the_same_bytes(tiny_model: Path, suite: Path, tmp_path: Path) -> None:
    """Before and after what makes a file whole and in the middle of a transaction, in processes of their own."""
    log = tmp_path / "moments.txt"

    def run(out: Path, stop: int) -> int:
        options = ["--suite", str(suite), "--depth", "12", "--max-length", "120", "--out", str(out)]
        command = [sys.executable, "-c", KILLED, str(log), str(stop), "evaluate", f"tiny={tiny_model}", *options]
        # Scores of its own; what ranx and JAX compile is shared.
        own = os.environ | {
            "PRORANK_CACHE": str(out.with_name(f"{out.name}-cache")),
            "NUMBA_CACHE_DIR": str(cache_folder() / "numba"),
        }
        return subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, env=own
        ).returncode

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(whole, 0) == 0
    moments = int(log.read_text())
    assert moments > 50
    rng = random.Random(0)
    for _ in range(5):
        # Five of these cannot be the whole work.
        assert run(cut, rng.randint(1, moments // 5)) == -signal.SIGKILL
    assert run(cut, 0) == 0
    # What was left was less than the whole.
    assert int(log.read_text()) < moments
    left = {path.name for path in cut.rglob("*.tmp")}
    assert {name: text for name, text in files(cut).items() if Path(name).name not in left} == files(whole)


def test_what_is_wrong_with_a_later_model_or_collection_is_told_before_any_work(
    refused: Callable[..., str], tiny_model: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("evaluate", tiny_model, "--suite", suite, "--max-length", 120, "--out", tmp_path / "out")
    assert "no such model folder" in refused(*arguments, "--model", "./nowhere")
    monkeypatch.setattr(Reranker, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    for number, (damage, told) in enumerate(
        {
            "config.json": "config.json: hidden_act=",
            "tokenizer.json": "no tokenizer could be loaded",
            "model.safetensors": "not readable as safetensors",
            "missing": "tensors are missing, the first is",
        }.items()
    ):
        other = shutil.copytree(tiny_model, tmp_path / "models" / str(number))
        if damage == "config.json":
            config = json.loads((other / damage).read_text()) | {"hidden_act": "nothing"}
            (other / damage).write_text(json.dumps(config))
        elif damage == "missing":
            weights = load_file(other / "model.safetensors")
            save_file({name: weights[name] for name in list(weights)[1:]}, other / "model.safetensors")
        else:
            (other / damage).write_bytes((other / damage).read_bytes()[:1000])
        assert told in refused(*arguments, "--model", other)
        assert told in refused(*arguments, "--model", other, "--dry-run")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    other = tmp_path / "other" / "runs"
    other.mkdir()
    (other / "dense.trec").write_text("q Q0 d 1 nan x\n")
    (tmp_path / "first" / "runs").mkdir()
    write_run(tmp_path / "first" / "runs" / "dense.trec", bm25_run(read_beir(tmp_path / "first", "test"), 3), "x")
    assert "dense.trec:1: score 'nan' is not a finite number" in refused(*arguments, "--first-stage", "dense")
    assert not list((tmp_path / "out").rglob("run.trec*"))
