"""The command line: `prorank <verb>`. A verb parses its arguments, calls one function, and prints.

Imports stand inside the verbs, so that `prorank --help` answers at once.
"""

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prorank_jax.errors import PREEMPTED, InputError, Preempted

if TYPE_CHECKING:
    from prorank_jax.config import RunConfig

app = typer.Typer(
    name="prorank",
    help="Turn a small decoder language model into a document reranker, and measure it.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

data_app = typer.Typer(
    help="Training data: hard negatives, a teacher's scores, and files prepared for training.",
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")

Model = Annotated[str, typer.Argument(help="Model folder, Hugging Face hub id, or builtin:tiny.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens of a prompt [default: as trained, else 512].")]
Order = Annotated[str | None, typer.Option(help="What a prompt shows first: query_first or document_first.")]
Fsdp = Annotated[int, typer.Option(min=1, help="Devices that hold one copy of the model together.")]
Dtype = Annotated[str, typer.Option(help="Compute dtype: float32 or bfloat16.")]


@app.callback(invoke_without_command=True)
@data_app.callback(invoke_without_command=True)
def _help_without_a_verb(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def demo(
    workdir: Annotated[Path, typer.Option(help="Run folder; a run in it goes on.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the collection and of the training.")] = 0,
) -> None:
    """The whole way on a built-in tiny model and a generated collection: a CPU, minutes."""
    from prorank_jax.demo.run import DEPTH, run_demo
    from prorank_jax.tables import markdown_table

    summary = run_demo(workdir, seed)
    titles = {"bm25": "BM25", "base": "base model", "warmup": "after prompt warmup", "score": "after score learning"}
    rows = {titles[name]: row for name, row in summary["rows"].items()}
    what = f"{summary['queries']} queries on unseen towns, BM25's best {DEPTH} places reranked"
    print(f"\n{what}, {summary['seconds']:.0f} s\n")
    print(markdown_table(rows))
    print(f"\nmodel: {workdir / 'export'}   curves: {workdir / 'curves.png'}   figures: {workdir / 'summary.json'}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    workdir: Annotated[Path, typer.Option(help="Run folder; a run in it goes on.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields to change: warmup.steps=50 ...")] = None,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, in a run of several [Cloud TPU knows by itself].")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="How many processes the run has.")] = None,
    process: Annotated[int | None, typer.Option(help="Which of them this is, from 0.")] = None,
    join_timeout: Annotated[int, typer.Option(min=1, help="Seconds to wait for the other processes.")] = 300,
) -> None:
    """Prompt warmup, then score learning, then a model folder in WORKDIR/export."""
    from prorank_jax.config_file import load_config
    from prorank_jax.runtime.distributed import join, on_cloud_tpu, read_group, supervised

    group = read_group(coordinator, processes, process)
    run = load_config(config, overrides or ())
    if group is None and not on_cloud_tpu():
        _train(run, workdir)
        return

    def joined() -> None:
        join(group, join_timeout)
        _train(run, workdir)

    raise typer.Exit(supervised(lambda: _status(joined)))


def _train(config: "RunConfig", workdir: Path) -> None:
    import jax

    from prorank_jax.runtime.preemption import Preemption
    from prorank_jax.tables import markdown_table
    from prorank_jax.train import train as train_run

    preemption = Preemption()
    with preemption.watch():
        trained = train_run(config, workdir, preemption)
    if jax.process_index() > 0:
        return
    if trained.development:
        rows = {row: {"ndcg@10": value} for row, value in trained.development.items()}
        print(markdown_table(rows, "held-out queries"))
    print(f"model: {trained.export}")


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    topology: Annotated[str, typer.Option(help="The slice, as v5e:2x4 (v4, v5e, v5p, v6e).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Fields to change: mesh.fsdp=4 ...")] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Try meshes and batch sizes; a table.")] = False,
) -> None:
    """Whether a run fits a TPU slice: its steps compiled for the real chip, without one."""
    from prorank_jax import plan as planner
    from prorank_jax.config_file import load_config
    from prorank_jax.progress import tell

    run = load_config(config, overrides or ())
    if sweep:
        print(planner.describe_sweep(planner.sweep(run, topology, tell)))
        return
    planned = planner.plan(run, topology, tell)
    print(planner.describe(planned))
    if planned.remedies:
        raise typer.Exit(1)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder, RUN/score, or RUN/score/checkpoints/STEP.")],
    out: Annotated[Path, typer.Argument(help="Model folder to write.")],
    kind: Annotated[str, typer.Option("--format", help="causal, or seq-cls: a classifier of one label.")] = "causal",
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write any checkpoint of a run as a Hugging Face model folder."""
    from prorank_jax.export import export_checkpoint

    stage, step = export_checkpoint(checkpoint, out, kind=kind, dtype=dtype)
    print(f"model: {out}   step {step} of {stage}, {kind}, {dtype}")


@app.command()
def evaluate(
    model: Annotated[str | None, typer.Argument(help="Model folder, hub id, or builtin:tiny.")] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Another model, or NAME=MODEL; may be given again.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="A collection: beir/NAME, a BEIR folder, or a zip of one.")] = None,
    suite: Annotated[str | None, typer.Option(help="beir, nano-beir, or a YAML file of collections.")] = None,
    split: Annotated[
        str | None, typer.Option(help="With --data: whose queries and judgements [default: test].")
    ] = None,
    first_stage: Annotated[str, typer.Option(help="bm25, or a TREC or ranx run: a file, or a run's name.")] = "bm25",
    depth: Annotated[int, typer.Option(min=1, help="Candidates per query.")] = 100,
    k1: Annotated[float, typer.Option(min=0, help="Of BM25.")] = 0.9,
    b: Annotated[float, typer.Option(min=0, max=1, help="Of BM25.")] = 0.4,
    title_weight: Annotated[
        float | None, typer.Option(min=0, help="BM25 with the title as a field of its own [default: one field].")
    ] = None,
    metrics: Annotated[str | None, typer.Option(help="As ndcg@10,map,mrr@10,recall@100 [default: these].")] = None,
    fuse: Annotated[str | None, typer.Option(help="Fuse with the first stage too, as is best on this split.")] = None,
    instruction: Annotated[str | None, typer.Option(help="The task, in place of the prompt's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for runs, figures and tables.")] = None,
    first_stage_only: Annotated[bool, typer.Option("--first-stage-only", help="Measure without reranking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Retrieve, and say what reranking would cost.")] = False,
    max_length: MaxLength = None,
    order: Order = None,
    dtype: Dtype = "float32",
    fsdp: Fsdp = 1,
) -> None:
    """Retrieve, rerank and measure: one collection (--data) or many (--suite), one model or several."""
    from prorank_jax.card import add_measurement
    from prorank_jax.data.candidates import BM25
    from prorank_jax.evaluation.first_stage import FirstStage
    from prorank_jax.evaluation.measures import DEFAULT_METRICS, check_metrics
    from prorank_jax.evaluation.suites import load_suite, one_collection
    from prorank_jax.progress import tell
    from prorank_jax.reranker import Reranker
    from prorank_jax.suite import Folders, Model, Settings, Suite, default_out, name_models, open_jobs
    from prorank_jax.suite_report import write_report

    sources = [*([model] if model else []), *(models or [])]
    if bool(sources) == first_stage_only:
        raise InputError("prorank evaluate: give either a MODEL or --first-stage-only, not both and not neither")
    of_models = {"--fuse": fuse, "--instruction": instruction, "--dry-run": dry_run, "--max-length": max_length}
    if first_stage_only and (unused := [option for option, value in of_models.items() if value]):
        raise InputError(f"{unused[0]}: has no meaning with --first-stage-only; leave it out")
    if (data is None) == (suite is None):
        raise InputError("prorank evaluate: give either --data or --suite, not both and not neither")
    if split is not None and suite is not None:
        raise InputError(f"--split={split}: has no meaning with --suite, whose file names splits; leave it out")
    stage = FirstStage(first_stage, depth, BM25(k1, b, title_weight))
    measures = DEFAULT_METRICS if metrics is None else check_metrics(metrics.split(","))
    settings = Settings(stage, measures, instruction, fuse)
    named = name_models(sources)
    listed = load_suite(suite) if suite is not None else one_collection(str(data), split or "test")
    jobs = open_jobs(listed, settings)
    single = suite is None and len(named) <= 1 and fuse is None
    out = out or default_out(named, suite, jobs, single)

    def load(model: Model) -> Reranker:
        return Reranker.from_pretrained(model.source, dtype=dtype, max_length=max_length, order=order, fsdp=fsdp)

    work = Suite(jobs, Folders(out, single), settings, tell=tell)
    if dry_run:
        for one in named:
            print("\n".join(work.cost(one, load(one))))
        return
    systems = work.measure(named, load, measured=add_measurement)
    print(write_report(systems, jobs, measures, out))
    print(f"figures, runs and tables: {out}")


@app.command()
def rerank(
    model: Model,
    documents: Annotated[Path, typer.Argument(help="Text file, one document a line; - is standard input.")],
    query: Annotated[str, typer.Option(help="The query.")],
    top_k: Annotated[int | None, typer.Option(min=1, help="How many to print [default: all].")] = None,
    instruction: Annotated[str | None, typer.Option(help="The task, in place of the prompt's own.")] = None,
    max_length: MaxLength = None,
    order: Order = None,
    dtype: Dtype = "float32",
    fsdp: Fsdp = 1,
) -> None:
    """Score the lines of a text file for a query, best first: score, line number, text."""
    from prorank_jax.reranker import Reranker

    try:
        text = sys.stdin.read() if str(documents) == "-" else documents.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{documents}: cannot be read as text ({error}); give a UTF-8 file") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{documents}: holds no document; write one a line")
    reranker = Reranker.from_pretrained(model, dtype=dtype, max_length=max_length, order=order, fsdp=fsdp)
    for hit in reranker.rank(query, [line for _, line in lines], top_k, instruction=instruction):
        print(f"{hit.score:.4f}\t{lines[hit.index][0]}\t{hit.document}")


@data_app.command("prepare")
def data_prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="A collection: beir/NAME, a BEIR folder, or a zip of one. Or rows: a file, a folder or pattern of "
            "files, or hf://datasets/..."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Of rows: the folder to write, which data.path of a configuration may name.")
    ] = None,
    single: Annotated[bool, typer.Option("--single", help="Of rows: for score.documents_per_query=1.")] = False,
    for_scores: Annotated[
        bool, typer.Option("--for-scores", help="Of rows: keep queries without a relevant document, to learn scores.")
    ] = False,
) -> None:
    """Write a collection or files of rows as ArrayRecord, read by position; other commands do it by themselves too."""
    from prorank_jax.cache import VARIABLE
    from prorank_jax.data.collections import describe, is_collection, prepare_collection
    from prorank_jax.data.prepare import prepare

    if is_collection(source):
        of_rows = {"--out": out, "--single": single, "--for-scores": for_scores}
        for option, value in of_rows.items():
            if value:
                raise InputError(
                    f"{option}: is for rows, and {source} is a collection, which goes to the cache; leave it out "
                    f"(the cache is the folder that {VARIABLE} names)"
                )
        started = time.monotonic()
        print(describe(prepare_collection(source), time.monotonic() - started))
        return
    if out is None:
        raise InputError(f"prorank data prepare: {source} is no collection; name a folder for its rows in --out")
    positives_only = not for_scores and not single
    prepared = prepare(source, out, single=single, positives_only=positives_only, remedy="give another --out")
    print(f"{prepared.rows} rows, {prepared.groups} groups, {prepared.skipped} without a positive skipped: {out}")


@data_app.command("mine")
def data_mine(
    out: Annotated[Path, typer.Option(help="File to write: .jsonl or .jsonl.gz.")],
    data: Annotated[str | None, typer.Option(help="A collection: beir/NAME, a BEIR folder, or a zip of one.")] = None,
    split: Annotated[str | None, typer.Option(help="Whose queries and judgements [default: train].")] = None,
    first_stage: Annotated[str | None, typer.Option(help="bm25 [default], or a run: a file, or its name.")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Candidates per query [default: 100].")] = None,
    ranks: Annotated[str | None, typer.Option(help="First and last rank of negatives [default: 1:DEPTH].")] = None,
    relative_margin: Annotated[
        float | None, typer.Option(help="Share of the lowest positive's score that a negative's must be below it.")
    ] = None,
    absolute_margin: Annotated[float | None, typer.Option(help="The same in the first stage's unit.")] = None,
    relevant_from: Annotated[
        int | None, typer.Option(min=1, help="Lowest judgement of a positive [default: 1].")
    ] = None,
    scores: Annotated[str | None, typer.Option(help="Mined and scored rows, to drop false negatives from.")] = None,
    max_score: Annotated[float | None, typer.Option(help="With --scores: highest score of a negative.")] = None,
    teacher_margin: Annotated[
        float | None, typer.Option(help="With --scores: how far a negative must be below the lowest positive.")
    ] = None,
    negatives: Annotated[int, typer.Option(min=1, help="Per query at most.")] = 7,
    positives: Annotated[int | None, typer.Option(min=1, help="Per query at most [default: all].")] = None,
    sample: Annotated[str, typer.Option(help="top: the first ranked negatives; random: any of the window.")] = "top",
    seed: Annotated[int, typer.Option(min=0, help="Of the random sample.")] = 0,
) -> None:
    """Hard negatives of a collection (--data), or those of a scored file that are not in doubt (--scores)."""
    from prorank_jax.data.candidates import candidates
    from prorank_jax.data.collections import open_collection
    from prorank_jax.data.false_negatives import Doubt, drop_false_negatives
    from prorank_jax.data.jsonl import check_out
    from prorank_jax.data.mine import Choice, Window, depth_of, mine, parse_ranks, write_mined

    mining = {
        "--split": split,
        "--first-stage": first_stage,
        "--depth": depth,
        "--ranks": ranks,
        "--relative-margin": relative_margin,
        "--absolute-margin": absolute_margin,
        "--relevant-from": relevant_from,
    }
    dropping = {"--max-score": max_score, "--teacher-margin": teacher_margin}
    if (data is None) == (scores is None):
        raise InputError("prorank data mine: give either --data or --scores, not both and not neither")
    mode, other = ("--scores", mining) if data is None else ("--data", dropping)
    if unused := [option for option, value in other.items() if value is not None]:
        raise InputError(f"{unused[0]}={other[unused[0]]}: has no meaning with {mode}; leave it out")
    choice = Choice(negatives, positives, sample, seed)
    check_out(out)
    if scores is not None:
        print(f"{drop_false_negatives(scores, out, Doubt(max_score, teacher_margin), choice)}: {out}")
    elif data is not None:
        first_and_last = None if ranks is None else parse_ranks(ranks)
        depth = depth_of(first_and_last, depth)
        lowest = 1 if relevant_from is None else relevant_from
        window = Window(first_and_last or (1, depth), relative_margin, absolute_margin, lowest)
        collection = open_collection(data, split or "train")
        mined = mine(collection, candidates(collection, first_stage or "bm25", depth), window, choice)
        write_mined(mined, out)
        print(f"{mined}: {out}")


@data_app.command("score")
def data_score(
    files: Annotated[str, typer.Argument(help="Rows: a file, a folder or pattern of files, or hf://datasets/...")],
    teacher: Annotated[str, typer.Option(help="Reranker folder, Hugging Face hub id, or builtin:tiny.")],
    out: Annotated[Path, typer.Option(help="File to write: .jsonl or .jsonl.gz; one begun before goes on.")],
    batch: Annotated[int | None, typer.Option(min=1, help="Prompts at a time [default: about 8,000 tokens].")] = None,
    max_length: MaxLength = None,
    order: Order = None,
    dtype: Dtype = "float32",
    fsdp: Fsdp = 1,
) -> None:
    """Write a teacher's scores beside the documents of files of rows."""
    from prorank_jax.data.jsonl import check_out
    from prorank_jax.reranker import Reranker
    from prorank_jax.teacher import score_file

    check_out(out)
    reranker = Reranker.from_pretrained(teacher, dtype=dtype, max_length=max_length, order=order, fsdp=fsdp)
    done = score_file(reranker, files, out, batch_size=batch, show_progress=True)
    went_on = f", {done.found} of them scored before" if done.found else ""
    print(f"{done.rows} rows, {done.documents} documents{went_on}: {out}")


@app.command()
def doctor() -> None:
    """What this machine has, and what is missing."""
    from prorank_jax.doctor import describe, diagnose

    checks = diagnose()
    print(describe(checks))
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def main() -> None:
    """Runs the command line; bad input is one line on standard error and exit status 2."""
    logging.basicConfig(format="prorank: %(message)s", level=logging.WARNING)
    sys.exit(_status(lambda: app(prog_name="prorank", standalone_mode=False)))


def _status(work: Callable[[], int | None]) -> int:
    """The exit status of what is called; a line on standard error says why it is not 0."""
    try:
        return work() or 0
    except InputError as error:
        return _tell(str(error), 2)
    except Preempted as error:
        return _tell(str(error), PREEMPTED)
    except typer.TyperException as error:
        return _tell(f"{error.format_message().rstrip('.')}; see prorank --help", 2)
    except (typer.Abort, KeyboardInterrupt):
        return 130


def _tell(message: str, status: int) -> int:
    print(f"prorank: {message}", file=sys.stderr)
    return status
