"""Real pretrained decoders as rerankers: zero-shot, after each warmup, after score learning, after both.

    ../shared/tools/get_models.sh smollm2-135m gemma3-270m qwen2.5-coder-0.5b
    python benchmarks/real_models.py --workdir DIR [--rows smollm2 smollm2-expected] [--seeds 0] [--depth 100]
    python benchmarks/real_models.py --workdir DIR --table [--out FILE.json]

A row is a model (`_real_models.py`). The trained ones learn from the same mixture of real training data, in the same
budget. Of each row and seed are measured, one after the other, each in a process of its own:

- `answers`: format rate, accuracy, share of `1` and area under the ROC curve by the exact probabilities of both
  answers, on 512 balanced pairs: MS MARCO queries that nothing learns from, with negatives as in training; and
  `hard`: the same of DL19's passages judged 2 or 3 and others that BM25 ranks among its best 100.
- nDCG@10 of the first stage's best DEPTH: `dl19` (BM25), `dl19-splade`, `scifact`, `nfcorpus` (test).

Each finished measurement is a line of DIR/figures.jsonl and is not computed again; trainings resume from their
checkpoints, and evaluations from the scores that they kept. `--measures` leaves some out. Rows that others begin with
are trained first. nDCG@10 is compared by query (Fisher's randomisation test) in the order that the paper states.
"""

import gzip
import json
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _processes import in_fresh_process
from _real_models import BASES, HEAD, HELD_OUT, MAX_LENGTH, MIXTURE, ORDER, RANDOM_NEGATIVES, ROWS, configuration
from _record import parser, write

PAIRS = 512
COLLECTIONS = {
    "dl19": ("trec-dl19", "bm25"),
    "dl19-splade": ("trec-dl19", "runs/splade.top100.trec"),
    "scifact": ("scifact", "bm25"),
    "nfcorpus": ("nfcorpus", "bm25"),
}
"""Measure -> collection and first stage."""
MEASURES = ("answers", "hard", *COLLECTIONS)
METRIC = "ndcg@10"
DTYPE = "bfloat16"
"""Of training and of what is measured; scores are float32."""
Figures = dict[str, Any]


def write_rows(data: Path, out: Path) -> None:
    """Unpacks the mixture's files, MS MARCO's in two parts and without its last rows, which are `held_out`."""
    if out.exists():
        return
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with gzip.open(data / "train" / "msmarco.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = list(file)
    pieces = {"msmarco_head": rows[:HEAD], "msmarco_tail": rows[HEAD:-HELD_OUT], "held_out": rows[-HELD_OUT:]}
    for name, lines in pieces.items():
        (part / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    for name in MIXTURE.keys() - pieces.keys():
        with gzip.open(data / "train" / f"{name}.jsonl.gz") as packed, (part / f"{name}.jsonl").open("wb") as file:
            shutil.copyfileobj(packed, file)
    part.rename(out)


def model_of(name: str, seed: int, workdir: Path) -> Path:
    """The folder of a row's model."""
    if ROWS[name].stage is None:
        return workdir / "bases" / name
    return workdir / f"{name}-{seed}" / "export"


def imported(file: Path, out: Path) -> Figures:
    """Reads a base from its GGUF file."""
    from prorank_jax.model.gguf_folder import import_gguf

    started = time.monotonic()
    import_gguf(file, out)
    return {"seconds": time.monotonic() - started}


def trained(name: str, seed: int, workdir: Path) -> Figures:
    """Trains a row, or resumes its training."""
    from prorank_jax.config_file import parse_config
    from prorank_jax.train import train

    row, started = ROWS[name], time.monotonic()
    config = configuration(row, model_of(row.begins, seed, workdir), workdir / "rows", seed, DTYPE)
    train(parse_config(config), workdir / f"{name}-{seed}")
    return {"seconds": time.monotonic() - started, "peak_gb": _peak()}


def answers(model: Path, workdir: Path, data: Path, measure: str) -> Figures:
    """What a model answers to balanced pairs, `answers` or `hard`."""
    import jax.numpy as jnp

    from prorank_jax.config import DataConfig, MeshConfig, PromptConfig
    from prorank_jax.data.candidates import open_candidates
    from prorank_jax.data.collections import open_collection
    from prorank_jax.data.examples import JudgedSource, Selection
    from prorank_jax.data.mixture import open_mixture
    from prorank_jax.data.stream import pairs
    from prorank_jax.model.decoder import Decoder
    from prorank_jax.model.hf import load_pretrained
    from prorank_jax.prompt import load_prompt
    from prorank_jax.runtime.mesh import make_mesh
    from prorank_jax.warmup.development import measure_answers

    if measure == "answers":
        held_out = DataConfig(path=str(workdir / "rows" / "held_out.jsonl"), random_negatives=RANDOM_NEGATIVES)
        sources: Any = open_mixture(held_out, workdir / "prepared").sources
    else:
        collection = open_collection(str(data / "trec-dl19"), "test")
        found = open_candidates(collection, "bm25", 100)
        sources = [JudgedSource.from_collection(collection, found, Selection(2))]
    pretrained = load_pretrained(model)
    prompt = load_prompt(pretrained, PromptConfig(max_length=MAX_LENGTH), str(model))
    decoder, mesh = Decoder(pretrained.config, jnp.dtype(DTYPE)), make_mesh(MeshConfig(data=1))
    examples = pairs(sources, [1.0], seed=0).rows(range(PAIRS))
    measured = measure_answers(examples, decoder, pretrained.params, prompt, mesh)
    return {name.removeprefix("dev/"): value for name, value in measured.items()}


def ranked(model: Path, out: Path, data: Path, measure: str, depth: int) -> Figures:
    """nDCG@10 of a collection's candidates before and after the model has reranked them."""
    from prorank_jax.cli import main as command

    name, first_stage = COLLECTIONS[measure]
    if "/" in first_stage:
        first_stage = str(data / name / first_stage)
    started = time.monotonic()
    sys.argv = ["prorank", "evaluate", str(model), "--data", str(data / name), "--first-stage", first_stage]
    sys.argv += ["--depth", str(depth), "--dtype", DTYPE, "--max-length", "256", "--out", str(out)]
    try:
        command()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{model}: the evaluation on {measure} ended with status {end.code}") from None
    return {"seconds": time.monotonic() - started, "peak_gb": _peak(), **means(out)}


def means(folder: Path) -> Figures:
    """nDCG@10 and that of the first stage, over the queries of an evaluation's folder."""
    from prorank_jax.evaluate import read_per_query

    return {
        METRIC: float(read_per_query(folder, METRIC).mean()),
        "first_stage": float(read_per_query(folder, METRIC, first_stage=True).mean()),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Table:
    """The figures that DIR has, by row, seed and measure (`train` and the `MEASURES`, with their depth)."""

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / "figures.jsonl"
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.found: dict[tuple[str, int, str], Figures] = {}
        for line in lines:
            row = json.loads(line)
            self.found[row["row"], row["seed"], row["measure"]] = row["figures"]

    def once(self, row: str, seed: int, measure: str, function: Callable[..., Figures], *arguments: Any) -> None:
        """Computes a measurement that is not there, in a process of its own, and keeps it."""
        if (row, seed, measure) in self.found:
            return
        figures = self.found[row, seed, measure] = in_fresh_process(function, *arguments)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": row, "seed": seed, "measure": measure, "figures": figures}) + "\n")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        print(f"{row} {seed} {measure}: {shown}", flush=True)

    def values(self, row: str, measure: str, figure: str) -> list[float]:
        """A figure over seeds."""
        return [of[figure] for (name, _, what), of in self.found.items() if (name, what) == (row, measure)]


def compute(options: Any, table: Table) -> None:
    """Trains and measures the rows that are asked for."""
    workdir, data = options.workdir, options.data
    write_rows(data, workdir / "rows")

    def ready(name: str, seed: int) -> Path:
        row, model = ROWS[name], model_of(name, seed, workdir)
        if row.stage is None:
            file = options.models / f"{BASES[name]}.gguf"
            table.once(name, 0, "import", imported, file, model)
        else:
            ready(row.begins, seed)
            table.once(name, seed, "train", trained, name, seed, workdir)
        return model

    for name in options.rows:
        for seed in options.seeds if ROWS[name].stage else [0]:
            model = ready(name, seed)
            for measure in options.measures:
                if measure in COLLECTIONS:
                    out = evaluation_folder(workdir, name, seed, measure, options.depth)
                    at_depth = f"{measure}@{options.depth}"
                    table.once(name, seed, at_depth, ranked, model, out, data, measure, options.depth)
                else:
                    table.once(name, seed, measure, answers, model, workdir, data, measure)


def evaluation_folder(workdir: Path, name: str, seed: int, measure: str, depth: int) -> Path:
    """Where an evaluation of a row has its runs and figures."""
    return workdir / "evaluations" / f"{name}-{seed}" / f"{measure}-{depth}"


def report(options: Any, table: Table) -> dict[str, Any]:
    """Prints the table in Markdown and the comparisons, and returns them."""
    columns = ["format", "accuracy", "AUC", "hard AUC", *COLLECTIONS, "training"]
    print(f"\n| model | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, row in ROWS.items():
        cells = [table.values(name, "answers", figure) for figure in ("format_rate", "accuracy", "auc")]
        cells.append(table.values(name, "hard", "auc"))
        cells += [table.values(name, f"{measure}@{options.depth}", METRIC) for measure in COLLECTIONS]
        if any(cells):
            minutes = [seconds / 60 for seconds in table.values(name, "train", "seconds")]
            shown = [_shown(cell, ".3f") for cell in cells] + [_shown(minutes, ".0f") + " min" if minutes else "-"]
            print(f"| {row.title} | {' | '.join(shown)} |")
    compared = {f"{above} over {below}": _compared(options, above, below) for above, below in ORDER}
    for names, comparison in compared.items():
        if comparison:
            print(
                f"{names}: {comparison['difference']:+.4f}, p {comparison['randomisation']:.3f}, "
                f"{comparison['wins']} better, {comparison['losses']} worse"
            )
    figures = [{"row": row, "seed": seed, "measure": measure, **of} for (row, seed, measure), of in table.found.items()]
    return {"depth": options.depth, "figures": figures, "comparisons": {n: c for n, c in compared.items() if c}}


def _shown(values: list[float], form: str) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


def _compared(options: Any, above: str, below: str) -> dict[str, Any] | None:
    """Two rows by the queries of DL19 and BM25, over the seeds that both have."""
    import numpy as np

    from prorank_jax.evaluate import METRICS_FILE, read_per_query
    from prorank_jax.evaluation.significance import compare

    values: dict[str, list[Any]] = {below: [], above: []}
    for seed in options.seeds:
        folders = {
            name: evaluation_folder(options.workdir, name, seed if ROWS[name].stage else 0, "dl19", options.depth)
            for name in values
        }
        if all((folder / METRICS_FILE).exists() for folder in folders.values()):
            for name, folder in folders.items():
                values[name].append(read_per_query(folder, METRIC))
    if not values[above]:
        return None
    means_by_query = {name: np.mean(of, axis=0) for name, of in values.items()}
    return compare(means_by_query)[0]._asdict() | {"seeds": len(values[above])}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments.add_argument("--measures", nargs="*", default=list(MEASURES), choices=MEASURES, metavar="MEASURE")
    arguments.add_argument("--depth", type=int, default=100, help="candidates of a query that are reranked")
    arguments.add_argument("--workdir", type=Path, required=True, help="keeps models and figures")
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments.add_argument("--models", type=Path, default=Path.home() / ".cache" / "prorank-models", help="GGUF files")
    arguments.add_argument("--table", action="store_true", help="compute nothing, print what DIR has")
    options = arguments.parse_args()
    options.workdir, options.data = options.workdir.absolute(), options.data.absolute()
    table = Table(options.workdir)
    if not options.table:
        compute(options, table)
    record = report(options, table)
    if options.out:
        write(options.out, record, libraries=("jax", "flax", "optax", "transformers"))
    best = max(ROWS, key=lambda name: statistics.mean(table.values(name, f"dl19@{options.depth}", METRIC) or [0.0]))
    found = table.values(best, f"dl19@{options.depth}", METRIC)
    before = table.values(best, f"dl19@{options.depth}", "first_stage")
    if found:
        print(f"best on DL19: {ROWS[best].title}, nDCG@10 {statistics.mean(found):.4f} (BM25 {before[0]:.4f})")
    else:
        print("nothing is measured on DL19 yet")


if __name__ == "__main__":
    main()
