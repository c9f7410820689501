"""The paper's claims in miniature: each stage of the recipe, and each choice in it, on two worlds over several seeds.

    python benchmarks/paper_in_miniature.py [--worlds demo,nfcorpus] [--seeds 0,1,2] [--workdir DIR] [--out FILE.json]

The worlds are the demo's generated collection, another one for each seed, and NFCorpus; the base is `builtin:tiny`.
Every cell is trained by `prorank_jax.train.train` and measured on the test split: format rate and accuracy of answers
sampled for 256 pairs, half of them relevant, and nDCG@10 of BM25's candidates as the score reranks them. A warmed-up
model is trained once for a seed, and all cells that begin from it share it. The teacher has twice the layers of (c),
grown from it without a change of its scores, and trains twice the steps; the rows that it scores are the groups that
(f) learns from. Spread is the standard deviation of a sample (n - 1) over seeds.

Each finished cell is a line of DIR/WORLD-SEED/cells.jsonl and is not computed again: started again, the benchmark goes
on. Processes with different seeds can share DIR, and `--table` then prints what there is.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from math import sqrt
from pathlib import Path
from typing import Any

from _record import parser, write

METRICS = {"format_rate": "format rate", "accuracy": "accuracy", "ndcg@10": "nDCG@10"}
FIRST_STAGE = "bm25"
CHECKS = (("grpo-score", "base-score"), ("grpo-score", "grpo"))
"""(f) is to be above (d) and (c) in nDCG@10."""
Row = dict[str, Any]


def compute(options: argparse.Namespace, workdir: Path) -> None:
    """Computes the cells that WORKDIR lacks."""
    import jax
    from _miniature import CELLS, Place

    # A cell's step is compiled once for all seeds.
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for world in options.worlds:
        for seed in options.seeds:
            folder = workdir / f"{world}-{seed}"
            place = Place(world, seed, folder, options.data, options.steps_scale)
            done = {row["cell"] for row in read_cells(folder, options.steps_scale)}
            for name in (FIRST_STAGE, *CELLS):
                if name in done or not any(fnmatch(name, pattern) for pattern in options.cells):
                    continue
                if name != FIRST_STAGE:
                    place.ready(name)
                started = time.monotonic()
                figures: Row = {"format_rate": None, "accuracy": None}
                figures |= {"ndcg@10": place.first_stage()} if name == FIRST_STAGE else place.measure(name)
                seconds = round(time.monotonic() - started, 1)
                row = {"world": world, "seed": seed, "cell": name, **figures, "seconds": seconds}
                add_cell(folder, row | {"steps_scale": options.steps_scale})
                print(f"{world} {seed} {name}: nDCG@10 {row['ndcg@10']:.4f}, {seconds} s", flush=True)


def add_cell(folder: Path, row: Row) -> None:
    """Appends a finished cell."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cells.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_cells(folder: Path, steps_scale: float) -> list[Row]:
    """The finished cells of a world and seed."""
    path = folder / "cells.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    if other := {row["steps_scale"] for row in rows} - {steps_scale}:
        raise SystemExit(f"{path}: --steps-scale was {other.pop()} and is {steps_scale}; give another --workdir")
    return rows


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def aggregate(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """World -> cell -> `seeds`, `seconds` (the mean), and for each metric its `mean` and `sd`."""
    by_cell: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        by_cell.setdefault(row["world"], {}).setdefault(row["cell"], []).append(row)
    return {world: {cell: _aggregate(of) for cell, of in cells.items()} for world, cells in by_cell.items()}


def _aggregate(rows: Sequence[Row]) -> dict[str, Any]:
    seconds = statistics.mean(row["seconds"] for row in rows)
    figures: dict[str, Any] = {"seeds": [row["seed"] for row in rows], "seconds": round(seconds, 1)}
    for metric in METRICS:
        values = [row[metric] for row in rows if row[metric] is not None]
        if values:
            figures[metric] = {"mean": statistics.mean(values), "sd": spread(values)}
    return figures


def compare(rows: Sequence[Row], world: str, higher: str, lower: str) -> dict[str, Any] | None:
    """nDCG@10 of one cell less that of another, over the seeds that have both; None where none has.

    `standard_errors` is the difference of means in units of its standard error, sqrt(sd_1^2 / n + sd_2^2 / n);
    `paired` in units of that of the mean difference within a seed, where both cells have the same world.
    """
    found = {
        name: {row["seed"]: row["ndcg@10"] for row in rows if (row["world"], row["cell"]) == (world, name)}
        for name in (higher, lower)
    }
    seeds = sorted(found[higher].keys() & found[lower].keys())
    if not seeds:
        return None
    high, low = ([found[name][seed] for seed in seeds] for name in (higher, lower))
    within = [a - b for a, b in zip(high, low, strict=True)]
    difference = statistics.mean(within)
    result: dict[str, Any] = {"difference": difference, "seeds": len(seeds), "standard_errors": None, "paired": None}
    if len(seeds) > 1:
        error = sqrt((statistics.variance(high) + statistics.variance(low)) / len(seeds))
        result["standard_errors"] = difference / error if error else None
        paired = statistics.stdev(within) / sqrt(len(seeds))
        result["paired"] = difference / paired if paired else None
    return result


def table(world: str, cells: dict[str, dict[str, Any]], titles: dict[str, str]) -> str:
    """The world's cells as a Markdown table, in the order of `titles`."""
    lines = [f"| {world} | seeds | {' | '.join(METRICS.values())} |", "|---|---:|---:|---:|---:|"]
    for name, title in titles.items():
        if name in cells:
            figures = [shown(cells[name].get(metric)) for metric in METRICS]
            lines.append(f"| {title} | {len(cells[name]['seeds'])} | {' | '.join(figures)} |")
    return "\n".join(lines)


def shown(figure: dict[str, float | None] | None) -> str:
    """Mean and standard deviation."""
    if figure is None:
        return "-"
    return f"{figure['mean']:.4f}" + ("" if figure["sd"] is None else f" ± {figure['sd']:.4f}")


def told(check: dict[str, Any], letters: str) -> str:
    """A comparison in words."""
    if check["standard_errors"] is None or check["paired"] is None:
        errors = "no standard error"
    else:
        errors = f"{check['standard_errors']:.1f} standard errors, {check['paired']:.1f} paired"
    return f"{letters} {check['difference']:+.4f} ({errors})"


def report(options: argparse.Namespace, workdir: Path) -> None:
    """Prints the tables and checks, writes the file, and ends with the headline."""
    from _miniature import CELLS, PROBED_PAIRS, WORLDS

    rows = [
        row
        for world in options.worlds
        for seed in options.seeds
        for row in read_cells(workdir / f"{world}-{seed}", options.steps_scale)
    ]
    if not rows:
        raise SystemExit(f"{workdir}: no finished cell of these worlds and seeds; leave --table out to compute them")
    figures = aggregate(rows)
    titles = {FIRST_STAGE: "BM25, not reranked"} | {name: cell.title for name, cell in CELLS.items()}
    letters = {name: title.split()[0] for name, title in titles.items()}
    checks: dict[str, dict[str, Any]] = {}
    for world, cells in figures.items():
        print(f"\n{table(world, cells, titles)}\n")
        checks[world] = {}
        for higher, lower in CHECKS:
            if check := compare(rows, world, higher, lower):
                name = f"{letters[higher]} - {letters[lower]}"
                checks[world][name] = check
                print(f"{world}, nDCG@10: {told(check, name)}, {check['seeds']} seeds")
    headline = "; ".join(
        f"{world}: {', '.join(told(check, name) for name, check in of.items())}" for world, of in checks.items() if of
    )
    headline = f"nDCG@10 over seeds {','.join(map(str, options.seeds))}: {headline or '(f), (d) or (c) is missing'}"
    if options.out:
        settings = {
            "base": "builtin:tiny",
            "steps_scale": options.steps_scale,
            "pairs_asked": PROBED_PAIRS,
            "worlds": {world: vars(WORLDS[world]) for world in options.worlds},
        }
        record = {"headline": headline, "checks": checks, "aggregates": figures, "cells": rows, "settings": settings}
        write(options.out, record, libraries=("jax", "jaxlib", "optax", "bm25s"))
    print(headline)


def main() -> None:
    from _miniature import CELLS, WORLDS

    arguments = parser(__doc__)
    names = ", ".join((FIRST_STAGE, *CELLS))
    arguments.add_argument("--worlds", type=_listed, default=list(WORLDS), help="demo, nfcorpus or both, with a comma")
    arguments.add_argument("--seeds", type=_numbers, default=[0, 1, 2], help="numbers with commas")
    arguments.add_argument("--workdir", type=Path, help="keeps models and finished cells; default: a temporary folder")
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder that has nfcorpus")
    arguments.add_argument("--steps-scale", type=float, default=1.0, help="share of the steps, to try the script")
    arguments.add_argument("--cells", type=_listed, default=["*"], help=f"names or patterns, with commas, of {names}")
    arguments.add_argument("--table", action="store_true", help="compute nothing, print what WORKDIR has")
    options = arguments.parse_args()
    if unknown := [world for world in options.worlds if world not in WORLDS]:
        arguments.error(f"--worlds={unknown[0]}: not known; use {' or '.join(WORLDS)}")
    with tempfile.TemporaryDirectory() as temporary:
        workdir = options.workdir or Path(temporary)
        if not options.table:
            compute(options, workdir.absolute())
        report(options, workdir.absolute())


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in _listed(text)]


if __name__ == "__main__":
    main()
