"""Hard negatives of NFCorpus's training queries: time and memory of the command that a user types.

    python benchmarks/mining.py [--data FOLDER] [--out FILE.json]

`prorank data mine` retrieves by BM25, mines and writes, in a process of its own each time: imports, reading and writing
are in the time. Every row is then checked: none of its negatives is a positive, or a copy of one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from _record import parser, write

TARGETS = {"seconds": 120.0}
"""What the slowest of the commands stays below."""

REPETITIONS = 3
SPLIT = "train"
COMMANDS: dict[str, tuple[str, ...]] = {
    "the first ranked": (),
    "a window and a margin": ("--ranks", "10:100", "--relative-margin", "0.05", "--sample", "random"),
    "many, from a depth of 1,000": ("--depth", "1000", "--negatives", "50"),
}


class Mining(NamedTuple):
    """One command.

    Attributes:
      seconds: wall time, the median of the repetitions.
      slowest_seconds: the longest of them.
      peak_bytes: the most that the process held resident.
      printed: its counts, as it prints them.
    """

    seconds: float
    slowest_seconds: float
    peak_bytes: int
    printed: str


def measure(data: Path, options: tuple[str, ...]) -> Mining:
    """Mines again and again, and checks the rows."""
    seconds, peaks, printed = [], [], ""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "mined.jsonl.gz"
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            printed, peak = _run(["data", "mine", "--data", str(data), "--split", SPLIT, "--out", str(out), *options])
            seconds.append(time.perf_counter() - start)
            peaks.append(peak)
        check(data, out)
    return Mining(sorted(seconds)[len(seconds) // 2], max(seconds), max(peaks), printed.partition(f": {out}")[0])


def check(data: Path, mined: Path) -> None:
    """Raises AssertionError where a row has a relevant document among its negatives."""
    from prorank_jax.data.beir import read_beir
    from prorank_jax.data.jsonl import read_rows

    collection = read_beir(data, SPLIT)
    for place, row in read_rows(mined):
        judgements = collection.qrels[row["query_id"]]
        relevant = {collection.documents.get(name) for name, judgement in judgements.items() if judgement > 0}
        assert row["neg"] and not relevant.intersection(row["neg"]), place
        assert relevant.issuperset(row["pos"]), place


def headline(results: dict[str, Mining], queries: int) -> str:
    """The figure that has a target, in one line."""
    slowest = max(mining.slowest_seconds for mining in results.values())
    return f"hard negatives of {queries:,} NFCorpus queries: {slowest:.1f} s at most (target: below 120 s)"


def main() -> None:
    arguments = parser(__doc__)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "nfcorpus"
    arguments.add_argument("--data", type=Path, default=beside, help="BEIR folder of NFCorpus")
    options = arguments.parse_args()
    results: dict[str, Mining] = {}
    for name, command in COMMANDS.items():
        mining = results[name] = measure(options.data, command)
        print(f"{name}: {mining.seconds:.1f} s, {mining.peak_bytes / 2**20:.0f} MiB; {mining.printed}", flush=True)
    queries = int(next(iter(results.values())).printed.split()[0])
    told = headline(results, queries)
    if options.out:
        record: dict[str, Any] = {
            "headline": told,
            "targets": TARGETS,
            "queries": queries,
            "repetitions": REPETITIONS,
            "commands": {
                name: {"options": " ".join(COMMANDS[name]), **mining._asdict()} for name, mining in results.items()
            },
        }
        write(options.out, record, libraries=("bm25s", "numba", "numpy"))
    print(told)


def _run(arguments: list[str]) -> tuple[str, int]:
    """What a command prints, and its peak memory in bytes."""
    prorank = shutil.which("prorank", path=str(Path(sys.executable).parent)) or "prorank"
    with subprocess.Popen([prorank, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        printed = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"prorank {' '.join(arguments)}: exit status {child.returncode}")
    return printed.strip(), usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
