"""An evaluation of two collections that is killed again and again ends with the bytes of one that is not.

    python benchmarks/killed_evaluation.py [--data FOLDER] [--depth N] [--kills N] [--seed N] [--out FILE.json]

`prorank evaluate builtin:tiny --suite` on NFCorpus and SciFact runs once in peace and is timed. Then it is started
again and again in another folder and killed (SIGKILL) at moments drawn at random from the first third of the time that
the work took, and last left to end. Every file of both folders is compared; what was computed twice is the price of
the kills.
"""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from _record import parser, write

MAX_LENGTH = 128


def start(suite: Path, depth: int, out: Path) -> "subprocess.Popen[bytes]":
    """The command as a user types it; its lines go to a file next to the folder, and its scores to its own cache."""
    options = ["--suite", str(suite), "--depth", str(depth), "--max-length", str(MAX_LENGTH), "--out", str(out)]
    with out.with_suffix(".txt").open("ab") as lines:
        return subprocess.Popen(
            [Path(sys.executable).with_name("prorank"), "evaluate", "builtin:tiny", *options],
            stdout=subprocess.DEVNULL,
            stderr=lines,
            env=os.environ | {"PRORANK_CACHE": str(cache(out))},
        )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cache(out: Path) -> Path:
    return out.with_suffix(".cache")


def pairs_scored(out: Path) -> int:
    """Pairs whose scores are kept."""
    count = 0
    for path in cache(out).glob("scores/*.sqlite"):
        with closing(sqlite3.connect(path)) as connection:
            count += connection.execute("SELECT count(*) FROM scores").fetchone()[0]
    return count


def measure(data: Path, depth: int, kills: int, seed: int, scratch: Path) -> dict[str, Any]:
    suite = scratch / "two.yaml"
    suite.write_text(json.dumps({"collections": [str((data / name).resolve()) for name in ("nfcorpus", "scifact")]}))
    started = time.monotonic()
    if start(suite, depth, scratch / "whole").wait() != 0:
        raise SystemExit((scratch / "whole.txt").read_text())
    seconds = time.monotonic() - started
    print(f"in peace: {seconds:.0f} s", flush=True)

    rng = random.Random(seed)
    cut, killed, spent = scratch / "cut", [], 0.0
    # Collections are prepared already, as they were for most of the first.
    shutil.copytree(cache(scratch / "whole"), cache(cut), ignore=shutil.ignore_patterns("scores"))
    for _ in range(kills):
        process = start(suite, depth, cut)
        wait = rng.uniform(0, seconds / 3)
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        else:
            raise SystemExit("it had ended before it was killed; give a greater --depth")
        spent += wait
        killed.append({"after_seconds": wait, "pairs_scored": pairs_scored(cut)})
        print(f"killed after {wait:.0f} s: {killed[-1]['pairs_scored']} pairs scored", flush=True)
    started = time.monotonic()
    if start(suite, depth, cut).wait() != 0:
        raise SystemExit((scratch / "cut.txt").read_text())
    spent += time.monotonic() - started
    whole = files(scratch / "whole")
    different = sorted(name for name in whole | files(cut) if whole.get(name) != files(cut).get(name))
    return {
        "seconds_in_peace": seconds,
        "seconds_with_kills": spent,
        "kills": killed,
        "files": len(whole),
        "different_files": different,
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments.add_argument("--depth", type=int, default=50)
    arguments.add_argument("--kills", type=int, default=5)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(options.data, options.depth, options.kills, options.seed, Path(scratch))
    if options.out:
        write(options.out, figures, libraries=["jax"])
    print(
        f"{len(figures['kills'])} kills, {len(figures['different_files'])} of {figures['files']} files differ; "
        f"{figures['seconds_with_kills']:.0f} s instead of {figures['seconds_in_peace']:.0f}"
    )
    if figures["different_files"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
