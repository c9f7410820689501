"""A collection of many documents: prepared by TFDS in bounded memory, then read by id and as a whole.

    python benchmarks/collections_on_disk.py [--documents 1000000] [--zip] [--out FILE.json]

Writes a generated BEIR folder (64 words a document), or with --zip a zip of it, and prepares and reads it in a process
of its own, whose peak memory counts.

Needs about 1 GB in the folder for temporary files for each million documents, and 0.3 GB more for a zip.
"""

import json
import os
import random
import resource
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from _processes import in_fresh_process
from _record import parser, write

TARGETS = {"prepare_seconds": 300.0, "peak_gigabytes": 4.0, "microseconds_by_id": 50.0}
"""What a million documents stay below."""

READ = 20_000
SEED = 0


class Measured(NamedTuple):
    """Wall times of preparing, opening again and reading; the peak memory of all; bytes of the files made."""

    prepare_seconds: float
    open_seconds: float
    microseconds_by_id: float
    whole_seconds: float
    copies_seconds: float
    peak_gigabytes: float
    stored_bytes: int


def write_folder(folder: Path, documents: int, zipped: bool) -> Path:
    """Writes the generated collection; returns its folder or zip."""
    draw = random.Random(SEED)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 10))) for _ in range(50_000)]
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as out:
        for number in range(documents):
            title, text = (" ".join(draw.choices(words, k=count)) for count in (4, 60))
            out.write(json.dumps({"_id": f"doc{number}", "title": title, "text": text, "metadata": {}}) + "\n")
    with (folder / "queries.jsonl").open("w") as queries, (folder / "qrels" / "test.tsv").open("w") as qrels:
        for number in range(1000):
            queries.write(json.dumps({"_id": f"q{number}", "text": " ".join(draw.choices(words, k=6))}) + "\n")
            qrels.write(f"q{number}\tdoc{draw.randrange(documents)}\t1\n")
    if not zipped:
        return folder
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in [path for path in folder.rglob("*") if path.is_file()]:
            archive.write(file, f"{folder.name}/{file.relative_to(folder)}")
    return path


def measure(source: Path, cache: Path, documents: int) -> Measured:
    """Prepares the collection and reads it."""
    os.environ["PRORANK_CACHE"] = str(cache)
    from prorank_jax.data.collections import open_collection
    from prorank_jax.data.documents import copies

    times = [time.perf_counter()]
    found = open_collection(source, "test").documents
    times.append(time.perf_counter())
    found = open_collection(source, "test").documents
    times.append(time.perf_counter())
    names = [f"doc{number}" for number in random.Random(SEED).choices(range(documents), k=READ)]
    for name in names:
        found[name]
    times.append(time.perf_counter())
    assert sum(1 for _ in found.items()) == documents
    times.append(time.perf_counter())
    copies(found, names)
    times.append(time.perf_counter())
    prepared, opened, by_id, whole, copied = (end - start for start, end in zip(times, times[1:], strict=False))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    stored = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    return Measured(prepared, opened, by_id / READ * 1e6, whole, copied, peak / 1e9, stored)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--documents", type=int, default=1_000_000)
    arguments.add_argument("--zip", action="store_true", help="prepare a zip of the folder")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = in_fresh_process(write_folder, Path(name) / "made", options.documents, options.zip)
        measured = in_fresh_process(measure, source, Path(name) / "cache", options.documents)
    headline = (
        f"{options.documents:,} documents prepared in {measured.prepare_seconds:.0f} s, opened again in "
        f"{measured.open_seconds:.2f} s, read by id in {measured.microseconds_by_id:.0f} us each and one after another "
        f"in {measured.whole_seconds:.0f} s; at most {measured.peak_gigabytes:.2f} GB"
    )
    if options.out:
        figures: dict[str, Any] = {"headline": headline, "targets": TARGETS, "documents": options.documents}
        libraries = ("array_record", "numpy", "tensorflow-datasets")
        write(options.out, figures | {"zip": options.zip} | measured._asdict(), libraries=libraries)
    print(headline)


if __name__ == "__main__":
    main()
