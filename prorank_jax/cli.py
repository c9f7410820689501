"""The command line: `prorank <verb>`. A verb parses its arguments, calls one function, and prints.

Imports stand inside the verbs, so that `prorank --help` answers at once.
"""

import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from prorank_jax.cache import cache_folder
from prorank_jax.cli_data import data_app
from prorank_jax.cli_options import Dtype, Fsdp, MaxLength, Order, help_without_a_verb, load_reranker
from prorank_jax.cli_rerank import rerank
from prorank_jax.cli_serve import serve
from prorank_jax.errors import PREEMPTED, InputError, Preempted

if TYPE_CHECKING:
    from prorank_jax.config import RunConfig
    from prorank_jax.storage import Place

app = typer.Typer(
    name="prorank",
    help="Turn a small decoder language model into a document reranker, and measure it.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.callback(invoke_without_command=True)(help_without_a_verb)
app.command()(rerank)
app.command()(serve)


@app.command()
def demo(
    workdir: Annotated[str, typer.Option(help="Run folder; a run in it goes on.")] = "runs/demo",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the collection and of the training.")] = 0,
) -> None:
    """The whole way on a built-in tiny model and a generated collection: a CPU, minutes."""
    from prorank_jax.demo.run import DEPTH, run_demo
    from prorank_jax.storage import local
    from prorank_jax.tables import markdown_table

    folder = local(workdir, "--workdir")
    summary = run_demo(folder, seed)
    titles = {"bm25": "BM25", "base": "base model", "warmup": "after prompt warmup", "score": "after score learning"}
    rows = {titles[name]: row for name, row in summary["rows"].items()}
    what = f"{summary['queries']} queries on unseen towns, BM25's best {DEPTH} places reranked"
    print(f"\n{what}, {summary['seconds']:.0f} s\n")
    print(markdown_table(rows))
    print(f"\nmodel: {folder / 'export'}   curves: {folder / 'curves.png'}   figures: {folder / 'summary.json'}")
    print(f"report: {folder / 'report.html'}")


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="YAML file of the run.")],
    workdir: Annotated[str, typer.Option(help="Run folder, or gs://BUCKET/FOLDER; a run in it goes on.")],
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
    from prorank_jax.storage import place

    folder = place(workdir)
    group = read_group(coordinator, processes, process)
    run = load_config(config, overrides or ())
    if group is None and not on_cloud_tpu():
        _train(run, folder)
        return

    def joined() -> None:
        join(group, join_timeout)
        _train(run, folder)

    raise typer.Exit(supervised(lambda: _status(joined)))


def _train(config: "RunConfig", workdir: "Place") -> None:
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
    config: Annotated[str, typer.Argument(help="YAML file of the run.")],
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
    checkpoint: Annotated[str, typer.Argument(help="Run folder, RUN/score, or RUN/score/checkpoints/STEP.")],
    out: Annotated[str, typer.Argument(help="Model folder to write.")],
    kind: Annotated[str, typer.Option("--format", help="causal, or seq-cls: a classifier of one label.")] = "causal",
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write any checkpoint of a run as a Hugging Face model folder."""
    from prorank_jax.export import export_checkpoint
    from prorank_jax.storage import place

    stage, step = export_checkpoint(place(checkpoint), place(out), kind=kind, dtype=dtype)
    print(f"model: {out}   step {step} of {stage}, {kind}, {dtype}")


@app.command("import")
def import_model(
    source: Annotated[str, typer.Argument(help="GGUF file, or the first part of a split one; here or in a bucket.")],
    out: Annotated[str, typer.Argument(help="Model folder to write.")],
) -> None:
    """Write a GGUF file as a Hugging Face model folder, in float32."""
    from prorank_jax.model.gguf_folder import import_gguf
    from prorank_jax.storage import place

    import_gguf(source, place(out))
    print(f"model: {out}")


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
    out: Annotated[str | None, typer.Option(help="Folder for runs, figures and tables.")] = None,
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
    from prorank_jax.evaluate import SCORES
    from prorank_jax.evaluation.first_stage import FirstStage
    from prorank_jax.evaluation.measures import DEFAULT_METRICS, check_metrics
    from prorank_jax.evaluation.suites import load_suite, one_collection
    from prorank_jax.progress import tell
    from prorank_jax.reranker import Reranker
    from prorank_jax.storage import Mirror, in_bucket, place
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
    target = default_out(named, suite, jobs, single) if out is None else place(out)

    def load(model: Model) -> Reranker:
        return load_reranker(model.source, dtype, max_length, order, fsdp)

    def check(model: Model) -> None:
        Reranker.check_pretrained(model.source, dtype=dtype, max_length=max_length, order=order, fsdp=fsdp)

    with Mirror(target) as files:
        # Of a bucket, so that another machine resumes; else where every evaluation finds them.
        scores = files.here / SCORES if in_bucket(target) else None
        folders = Folders(files.here, single, scores)
        work = Suite(jobs, folders, settings, tell=tell, kept=lambda: files.publish(every=60))
        if dry_run:
            for one in named[1:]:
                check(one)
            for one in named:
                print("\n".join(work.cost(one, load(one))))
            return
        systems = work.measure(named, load, measured=add_measurement, check=check)
        print(write_report(systems, jobs, measures, files.here))
    print(f"figures, runs and tables: {target}")


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Run folder of prorank train or prorank demo, or gs://BUCKET/FOLDER.")],
    out: Annotated[str | None, typer.Option(help="File to write [default: RUN/report.html].")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="A collection evaluated here, for its texts; may be given again.")
    ] = None,
) -> None:
    """One page of HTML on a run: settings, curves, figures with their tests, queries, scores, answers."""
    from prorank_jax.report import write_report
    from prorank_jax.storage import place

    print(f"report: {write_report(place(run), None if out is None else place(out), data or ())}")


@app.command()
def doctor(
    run: Annotated[str | None, typer.Argument(help="Run folder [default: the machine itself].")] = None,
) -> None:
    """What this machine has and what is missing; or whether a run folder is sound, and what is wrong with it."""
    from prorank_jax.doctor import describe, diagnose

    if run is None:
        checks = diagnose()
        print(describe(checks))
    else:
        from prorank_jax.run_doctor import examine
        from prorank_jax.storage import place

        checks = examine(place(run))
        print(describe(checks, not_ok="DAMAGED"))
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def main() -> None:
    """Runs the command line; bad input is one line on standard error and exit status 2."""
    lines = logging.StreamHandler()
    # Orbax warns of what is ordinary here (leftovers of a killed run, hosts without a part of the data), and logs the
    # traces of what it raises; by absl, as other libraries do.
    lines.addFilter(lambda record: record.name != "absl" or record.levelno >= logging.CRITICAL)
    logging.basicConfig(format="prorank: %(message)s", level=logging.WARNING, handlers=[lines])
    # What ranx's compiler keeps, and a folder that ranx makes when it is imported.
    for variable, folder in (("NUMBA_CACHE_DIR", "numba"), ("IR_DATASETS_HOME", "ir_datasets")):
        os.environ.setdefault(variable, str(cache_folder() / folder))
    sys.exit(_status(_called))


def _called() -> int | None:
    for number, argument in enumerate(sys.argv[1:], start=1):
        if not argument.isascii() and any("\ud800" <= character <= "\udfff" for character in argument):
            raise InputError(f"argument {number}, {argument[:60]!r}: is not UTF-8; write it so, or rename the file")
    status: int | None = app(prog_name="prorank", standalone_mode=False)
    return status


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
    from prorank_jax.progress import visible

    print(f"prorank: {visible(message)}", file=sys.stderr)
    return status
