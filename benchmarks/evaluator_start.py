"""How long a process takes to its first measures: ranx as it is, and by prorank_jax.

    python benchmarks/evaluator_start.py [--fusion] [--out FILE.json]

Two processes, one after the other, each measure a collection of its own: the first with document ids of 4 characters,
the second with ids of 24. ranx as it is gets texts and compiles for each width of an id; prorank_jax hands it numbers.
Each way begins with an empty folder for compiled functions. Seconds are of the whole process, imports included, and
of one processor each (user and system) beside them, because other work on the machine changes the former. Both ways
must find the same values. With --fusion each process also fuses two runs.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _record import parser, write

METRICS = ("ndcg@10", "map", "mrr@10", "recall@100")
WIDTHS = {"first": 4, "second": 24}
QUERIES, DEPTH, DOCUMENTS = 300, 100, 5000
WAYS = ("ranx", "prorank_jax")


class Start(NamedTuple):
    """One process: its seconds, those of processors, and what it found."""

    seconds: float
    processor_seconds: float
    values: dict[str, float]


def collection(width: int) -> tuple[dict[str, dict[str, int]], list[dict[str, list[tuple[str, float]]]]]:
    """Judgements and two runs of the same candidates, no ties in them or in their sums; ids have `width` digits."""
    rng = np.random.default_rng(0)
    qrels: dict[str, dict[str, int]] = {}
    runs: list[dict[str, list[tuple[str, float]]]] = [{}, {}]
    for query in range(QUERIES):
        found = [f"{document:0{width}}" for document in rng.choice(DOCUMENTS, DEPTH, replace=False)]
        qrels[f"{query:0{width}}"] = {found[i]: int(rng.integers(1, 3)) for i in rng.choice(DEPTH, 5, replace=False)}
        for run in runs:
            scores = np.sort(rng.random(DEPTH))[::-1].tolist()
            run[f"{query:0{width}}"] = [(found[i], scores[rank]) for rank, i in enumerate(rng.permutation(DEPTH))]
    return qrels, runs


def measured(way: str, width: int, fusion: bool) -> dict[str, float]:
    """Means of the first run, or of its fusion with the second."""
    qrels, (first, second) = collection(width)
    if way == "prorank_jax":
        from prorank_jax.evaluation.measures import per_query

        if fusion:
            from prorank_jax.evaluation.fusion import Weights, fuse

            first = fuse(first, second, Weights(0.3, 0.7))
        return {name: float(values.mean()) for name, values in per_query(qrels, first, METRICS).items()}
    import ranx

    runs = [ranx.Run({query: dict(rows) for query, rows in run.items()}) for run in (first, second)]
    run = ranx.fuse(runs, params={"weights": [0.3, 0.7]}) if fusion else runs[0]
    values = ranx.evaluate(ranx.Qrels(qrels), run, list(METRICS), make_comparable=True)
    return {name: float(value) for name, value in values.items()}


def start(way: str, width: int, fusion: bool, folder: Path) -> Start:
    """Measures in a process of its own, whose compiled functions lie in `folder`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    environment["NUMBA_CACHE_DIR"] = str(folder)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--process", way, str(width), *(["--fusion"] if fusion else [])]
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Start(seconds, used, json.loads(printed.splitlines()[-1]))


def headline(starts: dict[str, dict[str, Start]]) -> str:
    told = {
        way: " and ".join(f"{one.seconds:.1f} s ({one.processor_seconds:.1f} s)" for one in of_way.values())
        for way, of_way in starts.items()
    }
    return (
        "first and second process, each with a collection of its own, wall (processors): "
        f"ranx {told['ranx']}, prorank_jax {told['prorank_jax']}"
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--fusion", action="store_true", help="fuse two runs before they are measured")
    arguments.add_argument("--process", nargs=2, metavar=("WAY", "WIDTH"), help="measure here, and print the values")
    options = arguments.parse_args()
    if options.process:
        way, width = options.process
        print(json.dumps(measured(way, int(width), options.fusion)))
        return
    starts: dict[str, dict[str, Start]] = {}
    for way in WAYS:
        with tempfile.TemporaryDirectory() as folder:
            starts[way] = {}
            for position, width in WIDTHS.items():
                one = starts[way][position] = start(way, width, options.fusion, Path(folder))
                print(f"{way:12}{position:8}{one.seconds:8.1f} s{one.processor_seconds:8.1f} s", flush=True)
    reference = starts["ranx"]["first"].values
    for of_way in starts.values():
        for one in of_way.values():
            if any(abs(one.values[name] - reference[name]) > 1e-9 for name in METRICS):
                raise SystemExit(f"the values differ: {one.values} and {reference}")
    if options.out:
        record: dict[str, Any] = {
            "headline": headline(starts),
            "queries": QUERIES,
            "depth": DEPTH,
            "id_widths": WIDTHS,
            "fusion": options.fusion,
            "starts": {
                way: {position: one._asdict() for position, one in of_way.items()} for way, of_way in starts.items()
            },
        }
        write(options.out, record, libraries=("ranx", "numba", "numpy"))
    print(headline(starts))


if __name__ == "__main__":
    main()
