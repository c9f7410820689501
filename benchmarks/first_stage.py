"""A large collection from its files to reranked candidates: time and memory of each phase, in a process of its own.

    python benchmarks/first_stage.py [--documents N] [--queries N] [--scratch FOLDER] [--out FILE.json]

The collection is made up: words fall off as Zipf's law has them, and a document has about 60. It is prepared, indexed
for BM25, and the best 100 of each query are retrieved; then a few queries are reranked by the built-in tiny model. A
smaller collection goes the same way, to show what does not grow with the corpus, and bm25s does its part of the work
plainly, from lists in memory.

Peak memory is the most that a process held resident, pages of mapped files included. Files are in the cache of the
operating system, as they are when one phase follows another.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from _processes import in_fresh_process
from _record import parser, write

TARGETS = {"peak_gigabytes": 6.0}
"""What indexing and retrieval stay below, each, with a million documents."""

DEPTH = 100
SMALL = 10_000
"""Documents of the collection whose reranking that of the large one is compared with."""
PLAIN = 100_000
"""Documents of the collection that bm25s indexes plainly, and that is not reranked."""
RERANKED = 20
"""Queries."""
VOCABULARY = 500_000
WORDS = (4, 56)
"""Of a title and of a text, on average."""


class Phase(NamedTuple):
    """What one phase took."""

    seconds: float
    peak_bytes: int

    @property
    def told(self) -> str:
        return f"{self.seconds:7.1f} s, {self.peak_bytes / 1e9:.2f} GB"


def generate(folder: Path, documents: int, queries: int, split: str = "test") -> None:
    """Writes a BEIR folder; a query is some words of a document, which is judged relevant."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = _words(rng)
    chances = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    asked = set(rng.choice(documents, queries, replace=False).tolist())
    (folder / "qrels").mkdir(parents=True)
    with (
        (folder / "corpus.jsonl").open("w") as corpus,
        (folder / "queries.jsonl").open("w") as texts,
        (folder / "qrels" / f"{split}.tsv").open("w") as qrels,
    ):
        for number in range(documents):
            if number % 10_000 == 0:
                lengths = rng.poisson(WORDS, (10_000, 2)) + 1
                drawn = iter(np.searchsorted(chances, rng.random(lengths.sum()) * chances[-1]).tolist())
            title, text = ([words[next(drawn)] for _ in range(length)] for length in lengths[number % 10_000])
            row = {"_id": f"doc{number}", "title": " ".join(title), "text": " ".join(text)}
            corpus.write(json.dumps(row) + "\n")
            if number in asked:
                query = " ".join(rng.permutation(title + text)[: rng.integers(3, 9)])
                texts.write(json.dumps({"_id": f"query{number}", "text": query}) + "\n")
                qrels.write(f"query{number}\tdoc{number}\t1\n")


def _words(rng: Any) -> list[str]:
    """Distinct words of consonants and vowels, some with an ending for the stemmer; the frequent ones are short."""
    syllables = [consonant + vowel for consonant in "bcdfghklmnprstvwz" for vowel in "aeiou"]
    endings = ["", "", "s", "ing", "ed"]
    found: dict[str, None] = {}
    while len(found) < VOCABULARY:
        parts = rng.integers(0, len(syllables), 2 + (len(found) >= 10_000) + (len(found) >= 200_000))
        found["".join(syllables[i] for i in parts) + endings[int(rng.integers(len(endings)))]] = None
    return list(found)


def prepare(folder: Path, split: str = "test") -> None:
    from prorank_jax.data.collections import open_collection

    open_collection(folder, split)


def index(folder: Path, title_weight: float | None = None, split: str = "test") -> None:
    from prorank_jax.data.bm25_index import BM25, open_index
    from prorank_jax.data.collections import open_collection

    collection = open_collection(folder, split)
    open_index(collection.documents, BM25(title_weight=title_weight), collection.name)


def retrieve(folder: Path, run: Path) -> None:
    from prorank_jax.data.candidates import candidates
    from prorank_jax.data.collections import open_collection
    from prorank_jax.data.runs import write_run

    write_run(run, candidates(open_collection(folder, "test"), "bm25", DEPTH), tag="bm25")


def rerank(folder: Path, run: Path) -> None:
    from prorank_jax.data.candidates import candidates
    from prorank_jax.data.collections import open_collection
    from prorank_jax.evaluation.rerank import rerank as rerank_run
    from prorank_jax.reranker import Reranker

    collection = open_collection(folder, "test")
    few = collection.only(list(collection.queries)[:RERANKED])
    rerank_run(Reranker.from_pretrained("builtin:tiny", max_length=256), few, candidates(few, str(run), DEPTH))


def plain(folder: Path) -> None:
    """What bm25s' own pages show: everything in lists, and its default settings for speed."""
    import bm25s
    import Stemmer

    with (folder / "corpus.jsonl").open() as lines:
        rows = list(map(json.loads, lines))
    with (folder / "queries.jsonl").open() as lines:
        queries = [json.loads(line)["text"] for line in lines]
    stemmer = Stemmer.Stemmer("english")
    texts = [f"{row['title']} {row['text']}" for row in rows]
    retriever = bm25s.BM25(k1=0.9, b=0.4)
    retriever.index(bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(queries, stopwords="en", stemmer=stemmer, show_progress=False)
    retriever.retrieve(tokens, corpus=[row["_id"] for row in rows], k=DEPTH, show_progress=False)


def timed(function: Callable[..., None], *arguments: Any) -> Phase:
    """Runs in the fresh process: imports are in the time."""
    start = time.perf_counter()
    function(*arguments)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Phase(seconds, peak if sys.platform == "darwin" else peak * 1024)


def phases(folder: Path, documents: int, queries: int) -> Iterator[tuple[str, Phase]]:
    """Each phase of one collection, as it is done."""
    in_fresh_process(generate, folder, documents, queries)
    run = folder / "run.trec"
    yield "prepare", in_fresh_process(timed, prepare, folder)
    yield "open again", in_fresh_process(timed, prepare, folder)
    yield "index", in_fresh_process(timed, index, folder)
    yield "index, titles apart", in_fresh_process(timed, index, folder, 1.0)
    yield "retrieve", in_fresh_process(timed, retrieve, folder, run)
    if documents != PLAIN:
        yield f"rerank {RERANKED} queries", in_fresh_process(timed, rerank, folder, run)
    else:
        yield "bm25s plainly", in_fresh_process(timed, plain, folder)


def headline(found: dict[str, Phase], documents: int, queries: int) -> str:
    """The figures that have a target, in one line."""
    indexing, retrieving = found["index"], found["retrieve"]
    peak = max(indexing.peak_bytes, retrieving.peak_bytes) / 1e9
    return (
        f"BM25 over {documents:,} documents: indexed in {indexing.seconds:.0f} s, {queries:,} queries in "
        f"{retrieving.seconds:.0f} s, {peak:.1f} GB at most (target: below {TARGETS['peak_gigabytes']:.0f} GB)"
    )


def ratio(found: dict[str, Phase]) -> float:
    """Of the seconds that indexing and retrieval take to those of bm25s plainly, which reads the texts as well."""
    return (found["index"].seconds + found["retrieve"].seconds) / found["bm25s plainly"].seconds


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--documents", type=int, default=1_000_000)
    arguments.add_argument("--queries", type=int, default=1_000)
    arguments.add_argument("--scratch", type=Path, help="folder for the collections, removed again [default: /tmp]")
    options = arguments.parse_args()
    every: dict[int, dict[str, Phase]] = {}
    for documents in sorted({SMALL, PLAIN, options.documents}):
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            os.environ["PRORANK_CACHE"] = str(Path(scratch) / "cache")
            found = every[documents] = {}
            for name, phase in phases(Path(scratch) / "collection", documents, options.queries):
                found[name] = phase
                print(f"{documents:>9,} documents, {name:20} {phase.told}", flush=True)
    told = headline(every[options.documents], options.documents, options.queries)
    if options.out:
        record: dict[str, Any] = {
            "headline": told,
            "targets": TARGETS,
            "queries": options.queries,
            "depth": DEPTH,
            "seconds_to_those_of_bm25s_plainly": ratio(every[PLAIN]),
            "documents": {
                str(documents): {name: phase._asdict() for name, phase in found.items()}
                for documents, found in every.items()
            },
        }
        write(options.out, record, libraries=("bm25s", "jax", "numba", "numpy", "tensorflow-datasets"))
    print(told)


if __name__ == "__main__":
    main()
