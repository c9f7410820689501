"""Training data of many rows: prepared in bounded memory, then batches at full speed, equal for any number of workers.

    python benchmarks/training_data.py [--rows 5000000] [--tokenizer FOLDER] [--out FILE.json]

Writes generated pointwise rows as JSONL.gz, four of a query one after the other, prepares them, and makes batches of
tokenised pairs with 1, 2 and 4 workers. Each part runs in a process of its own, whose peak memory counts. A training
step is not part of it: what is measured is how fast batches could be taken.

Needs about 0.5 GB in the folder for temporary files for each million rows.
"""

import gzip
import hashlib
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from _processes import in_fresh_process
from _record import parser, write

TARGETS = {"peak_gigabytes": 3.0}
"""What every process stays below."""

WORKERS = (1, 2, 4)
DOCUMENTS_PER_QUERY = 4
PAIRS = 64
BATCHES = 300
MAX_LENGTH = 128
SEED = 0


class Prepared(NamedTuple):
    """One preparation: wall time, peak memory, the groups that there are, and bytes of the files made."""

    seconds: float
    peak_bytes: int
    groups: int
    stored_bytes: int


class Made(NamedTuple):
    """Batches made by some workers: wall time from opening the data, that of the batches alone, peak memory, and a
    digest of each batch in the order in which they came."""

    opening_seconds: float
    seconds: float
    peak_bytes: int
    digests: list[str]


def write_rows(file: Path, rows: int) -> int:
    """Writes the generated rows; returns the bytes of the file."""
    draw = random.Random(SEED)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(5000)]
    sentences = [" ".join(draw.choices(words, k=12)) + "." for _ in range(20_000)]
    query = ""
    with gzip.open(file, "wt", compresslevel=1, encoding="utf-8") as out:
        for row in range(rows):
            if row % DOCUMENTS_PER_QUERY == 0:
                query = f"{row} " + " ".join(draw.choices(words, k=7))
            document = f"{row}: " + " ".join(draw.choices(sentences, k=3))
            out.write(json.dumps({"query": query, "document": document, "label": int(row % DOCUMENTS_PER_QUERY == 0)}))
            out.write("\n")
    return file.stat().st_size


def prepare_rows(file: Path, out: Path) -> Prepared:
    """Prepares the file."""
    from prorank_jax.data.prepare import prepare

    start = time.perf_counter()
    prepared = prepare(file, out, single=False, positives_only=True)
    seconds = time.perf_counter() - start
    return Prepared(seconds, _peak_bytes(), prepared.groups, sum(shard.size for shard in prepared.shards))


def make_batches(folder: Path, tokenizer: str, workers: int) -> Made:
    """Makes BATCHES batches of PAIRS prompts from a prepared folder."""
    import numpy as np

    from prorank_jax.data.loader import PairBatch, pair_batch
    from prorank_jax.data.stream import batches

    started = time.perf_counter()
    stream, prompt = _stream(folder), _prompt(tokenizer)

    def make(step: int) -> PairBatch[np.ndarray]:
        return pair_batch(stream, prompt, range(step * PAIRS, (step + 1) * PAIRS))

    make(0)
    begun = time.perf_counter()
    made = list(map(_digest, batches(make, 0, BATCHES, workers)))
    return Made(begun - started, time.perf_counter() - begun, _peak_bytes(), made)


def rows_of_process(folder: Path, process: int, processes: int) -> list[list[tuple[str, str, int]]]:
    """The rows that one of several processes reads for the first batches, when each takes its part of every batch."""
    own = PAIRS // processes
    stream = _stream(folder)
    firsts = [step * PAIRS + process * own for step in range(20)]
    return [[tuple(example[:3]) for example in stream.rows(range(first, first + own))] for first in firsts]


def two_processes_share(folder: Path) -> bool:
    """Whether the rows of two processes are disjoint and make up those of one."""
    [whole], (one, other) = (
        [in_fresh_process(rows_of_process, folder, process, count) for process in range(count)] for count in (1, 2)
    )
    return all(
        left + right == both and not set(left) & set(right) for left, right, both in zip(one, other, whole, strict=True)
    )


def headline(figures: dict[str, Any]) -> str:
    """The figures in one line."""
    fastest = max(made["pairs_per_second"] for made in figures["batches"].values())
    return (
        f"{figures['rows']:,} rows prepared in {figures['prepare']['seconds']:.0f} s "
        f"({figures['prepare']['rows_per_second']:,.0f} rows/s); {fastest:,.0f} pairs/s; at most "
        f"{figures['peak_gigabytes']:.2f} GB; batches {'equal' if figures['order_equal'] else 'NOT EQUAL'} for "
        f"{', '.join(figures['batches'])} workers; rows of two processes "
        f"{'make up the whole' if figures['processes_disjoint'] else 'DO NOT MAKE UP THE WHOLE'}"
    )


def measure(rows: int, tokenizer: str) -> Iterator[tuple[str, Any]]:
    """Yields the figures one after the other, each under its name."""
    with tempfile.TemporaryDirectory() as name:
        file, folder = Path(name) / "rows.jsonl.gz", Path(name) / "prepared"
        yield "file_bytes", in_fresh_process(write_rows, file, rows)
        prepared = in_fresh_process(prepare_rows, file, folder)
        yield "prepare", prepared._asdict() | {"rows_per_second": rows / prepared.seconds}
        made = {str(workers): in_fresh_process(make_batches, folder, tokenizer, workers) for workers in WORKERS}
        yield (
            "batches",
            {
                workers: {
                    "opening_seconds": one.opening_seconds,
                    "batches_per_second": BATCHES / one.seconds,
                    "pairs_per_second": BATCHES * PAIRS / one.seconds,
                    "peak_bytes": one.peak_bytes,
                }
                for workers, one in made.items()
            },
        )
        yield "peak_gigabytes", max(prepared.peak_bytes, *(one.peak_bytes for one in made.values())) / 1e9
        yield "order_equal", len({tuple(one.digests) for one in made.values()}) == 1
        yield "processes_disjoint", two_processes_share(folder)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=5_000_000)
    arguments.add_argument("--tokenizer", default="builtin:tiny", help="a model folder (default: %(default)s)")
    options = arguments.parse_args()
    figures: dict[str, Any] = {"rows": options.rows}
    for name, value in measure(options.rows, options.tokenizer):
        figures[name] = value
        print(f"{name}: {json.dumps(value)}", flush=True)
    if options.out:
        record = {
            "headline": headline(figures),
            "targets": TARGETS,
            "tokenizer": options.tokenizer,
            "pairs_per_batch": PAIRS,
            "max_length": MAX_LENGTH,
            **figures,
        }
        write(options.out, record, libraries=("array_record", "grain", "numpy", "tokenizers"))
    print(headline(figures))


def _stream(folder: Path) -> Any:
    from prorank_jax.data.prepared import RowSource, open_prepared
    from prorank_jax.data.stream import pairs

    return pairs([RowSource(open_prepared(folder), "label", "rows")], [1.0], SEED)


def _prompt(tokenizer: str) -> Any:
    os.environ["JAX_PLATFORMS"] = "cpu"
    from prorank_jax.config import PromptConfig
    from prorank_jax.model.hf import resolve
    from prorank_jax.prompt import build_prompt, load_tokenizer

    return build_prompt(load_tokenizer(resolve(tokenizer)), PromptConfig(max_length=MAX_LENGTH), place=tokenizer)


def _digest(batch: Any) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in batch)).hexdigest()


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
