"""The candidates of a training split of MS MARCO's size: retrieved once, in bounded memory, and opened again at once.

    python benchmarks/training_candidates.py [--documents N] [--queries N] [--scratch FOLDER] [--out FILE.json]

The collection is that of `first_stage.py`, with a judged document for each query. Its training source is opened by a
configuration as `prorank train` opens it, each time in a fresh process: where nothing is cached but the collection and
its index, again, and again with half the depth. Then groups are drawn. Peak memory is the most that a process held
resident, pages of mapped files included.

With --scratch the files stay: a run that was killed is resumed with the same arguments, and its seconds are those of
the queries that were left.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from _processes import in_fresh_process
from _record import parser, write
from first_stage import generate, index, prepare

TARGETS = {"peak_gigabytes": 3.0, "seconds_to_open_candidates": 2.0}

DEPTH = 100
DRAWN = 1000
"""Groups."""
DOCUMENTS_PER_QUERY = 8
SPLIT = "train"


class Opened(NamedTuple):
    """Seconds of the parts of opening a source, with nothing imported yet but the package, and the memory of it all."""

    collection: float
    candidates: float
    source: float
    """All of the source: the collection, its candidates, and the judgements."""
    milliseconds_per_group: float
    peak_bytes: int


def open_source(folder: Path, depth: int) -> Opened:
    """Opens the source by its parts, then as a whole, and draws from it."""
    from prorank_jax.config import DataConfig
    from prorank_jax.data.candidates import open_candidates
    from prorank_jax.data.collections import open_collection
    from prorank_jax.data.mixture import open_mixture
    from prorank_jax.data.stream import groups

    started = time.perf_counter()
    collection = open_collection(folder, SPLIT)
    opened = time.perf_counter()
    candidates = open_candidates(collection, "bm25", depth, show_progress=True)
    found = time.perf_counter()
    del collection, candidates
    begun = time.perf_counter()
    mixture = open_mixture(DataConfig(path=str(folder), split=SPLIT, depth=depth), folder)
    whole = time.perf_counter()
    stream = groups(mixture.sources, mixture.weights, 0, DOCUMENTS_PER_QUERY)
    drawing = time.perf_counter()
    for position in range(DRAWN):
        stream[position]
    drawn = (time.perf_counter() - drawing) / DRAWN * 1000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = peak if sys.platform == "darwin" else peak * 1024
    return Opened(opened - started, found - opened, whole - begun, drawn, peak_bytes)


def queries_there(cache: Path) -> int:
    """The queries whose candidates an interrupted run left."""
    from prorank_jax.json_text import parse_json

    records = list(cache.glob("candidates/*/*.part.json"))
    return int(parse_json(records[0].read_text())["rows"]) if records else 0


def measure(scratch: Path, documents: int, queries: int) -> dict[str, Any]:
    """The figures, each printed when it is there."""
    folder, cache, whole = scratch / "collection", scratch / "cache", scratch / "generated"
    os.environ["PRORANK_CACHE"] = str(cache)
    if not whole.exists():
        in_fresh_process(generate, folder, documents, queries, SPLIT)
        whole.touch()
    in_fresh_process(prepare, folder, SPLIT)
    in_fresh_process(index, folder, split=SPLIT)
    figures = scratch / "figures.json"
    found: dict[str, Any] = json.loads(figures.read_text()) if figures.exists() else {}
    for name, depth in (("first", DEPTH), ("again", DEPTH), ("half the depth", DEPTH // 2)):
        if name not in found:
            before = queries_there(cache)
            found[name] = in_fresh_process(open_source, folder, depth)._asdict() | {"queries_there_before": before}
            figures.write_text(json.dumps(found))
        opened = Opened(*list(found[name].values())[:-1])
        print(
            f"{name:15} collection {opened.collection:6.1f} s, candidates {opened.candidates:8.1f} s, whole source "
            f"{opened.source:6.1f} s, {opened.milliseconds_per_group:.2f} ms a group, {opened.peak_bytes / 1e9:.2f} GB",
            flush=True,
        )
    retrieved = queries - found["first"]["queries_there_before"]
    found["queries_per_second"] = retrieved / found["first"]["candidates"]
    found["table_bytes"] = sum(file.stat().st_size for file in cache.glob("candidates/*/*.npy"))
    return found


def headline(found: dict[str, Any], documents: int, queries: int) -> str:
    """The figures that have a target, in one line."""
    peak = max(found[name]["peak_bytes"] for name in ("first", "again")) / 1e9
    return (
        f"candidates of {queries:,} queries over {documents:,} documents: {found['queries_per_second']:.0f} queries/s "
        f"once, then opened in {found['again']['candidates']:.1f} s (target: below "
        f"{TARGETS['seconds_to_open_candidates']:.0f} s), {peak:.1f} GB at most (target: below "
        f"{TARGETS['peak_gigabytes']:.0f} GB)"
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--documents", type=int, default=1_000_000)
    arguments.add_argument("--queries", type=int, default=500_000)
    arguments.add_argument("--scratch", type=Path, help="folder for the collection and the cache, which stay there")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = (options.scratch or Path(temporary)).absolute()
        scratch.mkdir(parents=True, exist_ok=True)
        found = measure(scratch, options.documents, options.queries)
    told = headline(found, options.documents, options.queries)
    if options.out:
        record = {
            "headline": told,
            "targets": TARGETS,
            "documents": options.documents,
            "queries": options.queries,
            "depth": DEPTH,
            **found,
        }
        write(options.out, record, libraries=("bm25s", "numba", "numpy"))
    print(told)


if __name__ == "__main__":
    main()
