"""The page of a run: what stands on it, that its figures are those of the files, and that texts stay texts."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_gcs import FakeGcs

from prorank_jax.config_file import dump_config, parse_config
from prorank_jax.errors import InputError
from prorank_jax.report import write_report
from prorank_jax.reporting import queries
from prorank_jax.storage import place

# What a page must never run, lose its order by, or break off at. Neither JSON lines nor BEIR files can hold the last.
HOSTILE = '<script>alert("x")</script> & \u202egnihtemos\u202c \x00 <img src=http://evil.example/x>'
SURROGATE = "half \ud800"
SHOWN = '<script>alert("x")</script> & \\u202egnihtemos\\u202c \\x00 <img src=http://evil.example/x>'

METRICS = ("ndcg@10", "map")
QUERIES = ("q1", "q2", "q3", "q4")
BEFORE = {"ndcg@10": [0.5, 0.25, 1.0, 0.0], "map": [0.4, 0.2, 1.0, 0.1]}
AFTER = {"ndcg@10": [1.0, 0.75, 0.5, 0.0], "map": [1.0, 0.7, 0.5, 0.1]}
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """A page that is read strictly: its tags must be balanced. Keeps tags, texts, tables and sections."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.sections: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "section":
            self.section = str(dict(attrs)["id"])
            self.sections[self.section] = ""
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "section" in self.open:
            self.sections[self.section] += data
        if "tr" in self.open and self.open[-1] in ("td", "th", "strong"):
            self.tables[-1][-1][-1] += data

    def table(self, number: int) -> dict[str, dict[str, str]]:
        heading, *rows = self.tables[number]
        return {row[0]: dict(zip(heading[1:], row[1:], strict=True)) for row in rows}


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_collection(folder: Path) -> Path:
    """A BEIR folder of four queries and documents, with hostile texts."""
    lines(folder / "corpus.jsonl", [{"_id": f"d{n}", "text": f"document {n} {HOSTILE}"} for n in range(1, 5)])
    lines(folder / "queries.jsonl", [{"_id": name, "text": f"query {name} {HOSTILE}"} for name in QUERIES])
    (folder / "qrels").mkdir()
    judged = "".join(f"{name}\td{number}\t{number % 2 + 1}\n" for number, name in enumerate(QUERIES, start=1))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def write_evaluation(folder: Path, name: str = "made", **protocol: Any) -> None:
    """What `prorank evaluate` writes, with figures told beforehand."""
    folder.mkdir(parents=True)
    of = {"collection": name, "split": "test", "first_stage": "BM25", "depth": 4, "reranked": True}
    mean = {"metrics": AFTER, "first_stage": BEFORE}
    summary = {kind: {m: sum(values[m]) / 4 for m in METRICS} for kind, values in mean.items()}
    told = of | {"max_length": 64, "dtype": "float32", "instruction": HOSTILE, "queries": 4} | protocol
    (folder / "metrics.json").write_text(json.dumps(summary | {"oracle": {"ndcg@10": 0.875}, "protocol": told}))
    header: list[Any] = ["query_id", *(f"first_stage/{metric}" for metric in METRICS), *METRICS]
    rows: list[list[Any]] = [
        [q, *(BEFORE[m][n] for m in METRICS), *(AFTER[m][n] for m in METRICS)] for n, q in enumerate(QUERIES)
    ]
    (folder / "per_query.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in [header, *rows]))
    for file, order in (("first_stage.trec", (4, 3, 2, 1)), ("run.trec", (1, 2, 3, 4))):
        run = [f"{q} Q0 d{d} {rank} {9 - rank} x\n" for q in QUERIES for rank, d in enumerate(order, start=1)]
        (folder / file).write_text("".join(run))


def write_run(run: Path, data: Path, *, metrics: int = 3) -> Path:
    """A run folder as `prorank train` leaves it, with a stage of each kind and hostile completions."""
    stage = {"steps": 4, "optimizer": {"learning_rate": 1e-3}}
    config = parse_config(
        {
            "model": {"base": "org/tiny"},
            "data": {"path": str(data), "split": "test"},
            "warmup": stage | {"group_size": 2},
            "score": stage,
        }
    )
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(config))
    (run / "run.json").write_text(
        json.dumps({"began": "2026-01-02T03:04:05+00:00", "devices": 8, "device_kind": "TPU"})
    )
    rows = [{"step": s, "reward": s / 4, "format_rate": s / 4, "seconds": 2.0 * s} for s in range(1, metrics + 1)]
    lines(run / "warmup" / "metrics.jsonl", rows)
    lines(
        run / "score" / "metrics.jsonl", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1}]
    )
    asked = {"prompt": HOSTILE, "label": 1, "completions": [HOSTILE, HOSTILE, SURROGATE], "reward": [2.0, 2.0, 0.5]}
    lines(run / "warmup" / "completions.jsonl", [{"step": step} | asked for step in (1, 2, 3)])
    return run


def write_scores(run: Path) -> None:
    def rows(at: str, relevant: list[float], others: list[float]) -> list[dict[str, Any]]:
        return [{"at": at, "of": "training pairs", "label": 1, "score": score} for score in relevant] + [
            {"at": at, "of": "training pairs", "label": 0, "score": score} for score in others
        ]

    lines(
        run / "warmup" / "scores.jsonl", [*rows("begin", [1.0, 0.0], [0.0, 1.0]), *rows("end", [1.0, 2.0], [0.0, 1.0])]
    )
    lines(
        run / "score" / "scores.jsonl", [*rows("begin", [1.0, 2.0], [0.0, 1.0]), *rows("end", [5.0, 6.0], [1.0, 2.0])]
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "run", write_collection(tmp_path / "made"))
    write_evaluation(run / "evaluation" / "made-test")
    write_scores(run)
    return run


def page_of(run: Path, **options: Any) -> Page:
    return Page(Path(str(write_report(run, **options))).read_text(encoding="utf-8"))


def test_all_sections_stand_on_one_page_that_loads_and_runs_nothing(run: Path) -> None:
    page = page_of(run)
    assert list(page.sections) == ["run", "results", "curves", "queries", "scores", "answers"]
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    attributes = [(name, value) for _, attrs in page.tags for name, value in attrs.items()]
    # Links lead to sections of the page, and no attribute listens to anything.
    links = {value for name, value in attributes if name in ("href", "src", "xlink:href", "action", "data", "srcset")}
    assert links == {f"#{name}" for name in page.sections}
    assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]
    style = re.search("<style>(.*?)</style>", (run / "report.html").read_text(), re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1]
    # Whatever refers to another element refers to one that is there.
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = {one for name, value in attributes if name == "aria-labelledby" for one in str(value).split()}
    assert named and named <= set(ids)


def test_what_was_run(run: Path) -> None:
    told = page_of(run).sections["run"]
    for fact in ("02 January 2026, 03:04 UTC", "8 × TPU", "org/tiny", "32 prompts × 2 completions", "3 of 4", "6 s"):
        assert fact in told
    # A page may be shown to others: the paths of the machine are not.
    assert str(run.parent) not in (run / "report.html").read_text()


def test_texts_stay_texts(run: Path) -> None:
    page = page_of(run)
    for section in ("results", "queries", "answers"):
        assert SHOWN in page.sections[section], section
    written = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search("[\x00\u202c\u202e\ud800-\udfff]", written)
    assert "half \\ud800" in page.sections["answers"]
    assert page.sections["answers"].count("2 ×") == 3


def test_figures_are_those_of_the_evaluation(run: Path) -> None:
    page = page_of(run)
    written = json.loads((run / "evaluation" / "made-test" / "metrics.json").read_text())
    table = page.table(0)
    titles = {"ndcg@10": "nDCG@10", "map": "MAP"}
    for metric, title in titles.items():
        assert table["this model"][title] == f"{written['metrics'][metric]:.4f}"
        assert table["first stage"][title] == f"{written['first_stage'][metric]:.4f}"
    differences = page.table(1)["this model − first stage"]
    # By hand: 0.5, 0.5, -0.5 and 0. The sum of any flip of these signs is as far from 0, or farther.
    assert (differences["difference"], differences["p (randomisation)"]) == ("0.1250", "1.0000")
    assert differences["better / worse / equal"] == "2 / 1 / 1"
    told = page.sections["results"]
    assert "first stage: BM25; depth: 4; tokens of a prompt: 64; dtype: float32" in told
    assert "0.8750" in told


def test_the_queries_that_changed_with_the_documents_that_came_first(run: Path) -> None:
    told = " ".join(page_of(run).sections["queries"].split())
    assert "2 queries are better, 1 worse, 1 equal" in told
    gained, lost = told.split("Gained most")[1].split("Lost most")
    # The first of equal gains comes first; q4 did not change.
    assert re.findall(r"query (q\d)", gained) == ["q1", "q2"] and re.findall(r"query (q\d)", lost) == ["q3"]
    assert "0.500 → 1.000 +0.500" in gained and "1.000 → 0.500 −0.500" in lost
    before, after = gained.split("query q2")[0].split("This model")
    assert re.findall(r"document (\d)", before) == ["4", "3", "2"] and re.findall(r"document (\d)", after) == [*"123"]
    # Of q1, d1 alone is judged.
    assert "1. not judged d4 later rank 4" in before
    assert "1. relevant (2) d1 before rank 4" in after and "2. not judged d2 before rank 3" in after


def test_of_many_queries_those_that_changed_most_are_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "MOST", 1)
    gained, lost = page_of(run).sections["queries"].split("Gained most")[1].split("Lost most")
    assert re.findall(r"query (q\d)", gained + lost) == ["q1", "q3"]


def test_texts_of_a_collection_that_is_elsewhere_are_asked_for(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "made"
    shutil.copytree(tmp_path / "made", moved)
    shutil.rmtree(tmp_path / "made")
    told = page_of(run).sections["queries"]
    assert "prorank report RUN --data COLLECTION shows them" in told and "query q1" not in told
    assert "q1" in told and "not judged" not in told
    assert "query q1" in page_of(run, data=[str(moved)]).sections["queries"]
    with pytest.raises(InputError, match="no evaluation in .* is of this collection; evaluated: made"):
        write_report(run, data=[str(tmp_path / "other")])


def test_scores_by_label(run: Path) -> None:
    told = page_of(run).sections["scores"]
    assert "the same 4 training pairs" in told
    titles = ["Before prompt warmup", "After prompt warmup", "After score learning"]
    assert [title for title in re.findall(r"\w+ (?:prompt warmup|score learning)", told)[::2]] == titles
    # By hand: 1 > 0, 1 = 1, 2 > 0 and 2 > 1 are three and a half of four.
    assert re.findall(r"in ([\d.]+)% of all comparisons", told) == ["50.0", "87.5", "100.0"]


def test_models_of_one_collection_share_a_table_in_the_order_of_the_stages(run: Path) -> None:
    shutil.rmtree(run / "evaluation")
    for name in ("score", "base", "bm25"):
        write_evaluation(run / "evaluation" / name, reranked=name != "bm25")
    write_evaluation(run / "evaluation" / "suite" / "other" / "elsewhere-test", name="elsewhere")
    page = page_of(run)
    assert list(page.table(0)) == ["first stage", "base model", "after score learning"]
    assert [row[0] for row in page.tables[2]] == ["ranking", "first stage", "other"]


def test_a_run_of_an_older_version_that_was_not_evaluated(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tmp_path / "nowhere")
    for file in ("run.json", "warmup/completions.jsonl", "score/metrics.jsonl"):
        (run / file).unlink()
    page = page_of(run)
    assert "Nothing was measured in this run folder yet" in page.sections["results"]
    assert "This stage has no metrics yet." in page.sections["curves"]
    assert "No collection was evaluated in this run folder yet" in page.sections["queries"]
    assert "This run folder has no scores of a sample of pairs" in page.sections["scores"]
    assert "No completions were kept" in page.sections["answers"]


def test_held_out_queries(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tmp_path / "nowhere")
    tree = (run / "config.yaml").read_text().replace("  dev: null", "  dev: {split: dev, depth: 7}")
    (run / "config.yaml").write_text(tree)
    rows = [{"step": s, "dev/ndcg@10": v, "loss": 1.0} for s, v in ((0, 0.25), (2, 0.75), (4, 0.5))]
    lines(run / "score" / "metrics.jsonl", rows)
    page = page_of(run)
    assert page.table(0) == {
        "before score learning": {"nDCG@10": "0.2500"},
        "best model, step 2": {"nDCG@10": "0.7500"},
        "last model, step 4": {"nDCG@10": "0.5000"},
    }
    assert "the split dev; first stage: bm25; depth: 7" in page.sections["results"]


def test_held_out_prompts_of_a_warmup(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tmp_path / "nowhere")
    tree = (run / "config.yaml").read_text()
    before, after = tree.split("score:")
    before = before.replace("  dev: null", "  dev: {split: dev, depth: 7, pairs: 40, relevant_from: 2, ndcg: false}")
    (run / "config.yaml").write_text(f"{before}score:{after}")
    names = ("dev/accuracy", "dev/format_rate", "dev/positive_rate", "dev/auc")
    measured = ((0, (0.0, 0.0, 0.5, 0.5)), (2, (0.75, 1.0, 0.25, 0.875)), (4, (0.5, 1.0, 0.99, 0.625)))
    lines(run / "warmup" / "metrics.jsonl", [{"step": s} | dict(zip(names, v, strict=True)) for s, v in measured])
    page = page_of(run)
    titles = ("accuracy", "format rate", "share of 1", "AUC")
    assert page.table(0) == {
        label: dict(zip(titles, values, strict=True))
        for label, values in {
            "before prompt warmup": ("0.0000", "0.0000", "0.5000", "0.5000"),
            "best model, step 2": ("0.7500", "1.0000", "0.2500", "0.8750"),
            "last model, step 4": ("0.5000", "1.0000", "0.9900", "0.6250"),
        }.items()
    }
    assert "40 prompts, half of them relevant (judged 2 or higher)" in page.sections["results"]


def test_a_page_does_not_grow_with_the_steps_of_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tmp_path / "nowhere", metrics=20_000)
    long = {
        "prompt": "p" * 100_000,
        "label": 0,
        "completions": ["c" * 100_000] * 50,
        "reward": [*map(float, range(50))],
    }
    lines(run / "warmup" / "completions.jsonl", [{"step": step} | long for step in range(20)])
    assert (write_report(run)).stat().st_size < 150_000


def test_the_verb_writes_where_it_is_told(run: Path, tmp_path: Path, prorank: Callable[..., Any]) -> None:
    assert prorank("report", run) == (0, f"report: {run / 'report.html'}\n", "")
    elsewhere = tmp_path / "new" / "page.html"
    assert prorank("report", run, "--out", elsewhere) == (0, f"report: {elsewhere}\n", "")
    assert elsewhere.read_bytes() == (run / "report.html").read_bytes()


def test_a_run_in_a_bucket(cloud: FakeGcs, bucket: str, run: Path, prorank: Callable[..., Any]) -> None:
    away = cloud.put_folder(bucket, "runs/run", run)
    assert prorank("report", away)[:2] == (0, f"report: {away}/report.html\n")
    assert cloud.objects[bucket]["runs/run/report.html"].content == Path(str(write_report(run))).read_bytes()
    assert place(f"{away}/report.html").read_text().startswith("<!DOCTYPE html>")


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    told = "no run folder; give one with config.yaml, as prorank train and prorank demo make it"
    assert refused("report", tmp_path / "none") == f"{tmp_path / 'none'}: {told}"
    (tmp_path / "empty").mkdir()
    assert refused("report", tmp_path / "empty") == f"{tmp_path / 'empty'}: {told}"
    assert refused("report", run, "--out", tmp_path) == (
        f"{tmp_path}: cannot be written (Is a directory); name a file elsewhere with --out"
    )
    for stage in ("warmup", "score"):
        (run / stage / "metrics.jsonl").unlink()
    told = "no metrics of a stage here; give the workdir of a run that has trained"
    assert refused("report", run) == f"{run}: {told}"
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.json", '{"metrics": {}}'),
        ("per_query.tsv", "query_id\tndcg@10\nq1\tx\n"),
    ],
)
def test_a_damaged_evaluation_is_named(run: Path, file: str, content: str, refused: Callable[..., str]) -> None:
    damaged = run / "evaluation" / "made-test" / file
    damaged.write_text(content)
    assert refused("report", run) == f"{damaged}: not what prorank evaluate writes; evaluate again"
