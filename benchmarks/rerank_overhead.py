"""How much of the time of reranking is not the model's: reading, tokenising and bookkeeping.

    python benchmarks/rerank_overhead.py [--data FOLDER] [--max-length N] [--out FILE.json]

SciFact's BM25 top 100 is reranked with the built-in tiny model, as `prorank evaluate` does it: documents are read from
the prepared collection, and scores are kept as they come. In turns with it, the same batches go through the model
alone, made before the clock starts. The overhead is the share of the first time that the second does not explain. A
model of usual size takes longer for the same pairs, so its share is smaller. For comparison, chunks are also read,
tokenised and computed in turn, each document as often as it is found.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _record import parser, write

TARGETS = {"overhead": 0.10}
ROUNDS = 4


def measure(data: Path, max_length: int, depth: int) -> dict[str, Any]:
    """The queries in as many parts as there are rounds, each reranked in both ways."""
    import numpy as np

    from prorank_jax.data.candidates import candidates
    from prorank_jax.data.collections import open_collection
    from prorank_jax.data.runs import Run
    from prorank_jax.evaluation.rerank import CHUNK_TOKENS, rerank
    from prorank_jax.evaluation.score_cache import ScoreCache
    from prorank_jax.reranker import Reranker
    from prorank_jax.scoring.shared import Unit

    collection = open_collection(data, "test")
    run = candidates(collection, "bm25", depth)
    reranker = Reranker.from_pretrained("builtin:tiny", max_length=max_length)
    names = list(run)

    def whole(part: Run, file: Path) -> float:
        start = time.perf_counter()
        with ScoreCache(file) as cache:
            rerank(reranker, collection, part, cache=cache)
        return time.perf_counter() - start

    def chunks(part: Run) -> Iterator[list[tuple[str, str]]]:
        """The pairs of the chunks that `rerank` makes."""
        chunk: list[tuple[str, str]] = []
        for number, (query_id, ranking) in enumerate(part.items()):
            chunk += [(collection.queries[query_id], collection.documents[name]) for name, _ in ranking]
            if len(chunk) * max_length >= CHUNK_TOKENS or number == len(part) - 1:
                yield chunk
                chunk = []

    def batches(pairs: list[tuple[str, str]]) -> list[Unit]:
        return list(reranker._arranged(reranker.prompt.encode_parts(pairs)))

    def scores(units: list[Unit]) -> None:
        for _, made in list(reranker._dispatched(units)):
            np.asarray(made)

    def in_turn(part: Run) -> float:
        start = time.perf_counter()
        for pairs in chunks(part):
            scores(batches(pairs))
        return time.perf_counter() - start

    def model(made: list[list[Unit]]) -> float:
        start = time.perf_counter()
        for of_chunk in made:
            scores(of_chunk)
        return time.perf_counter() - start

    rounds = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(ROUNDS):
            part = {name: run[name] for name in names[number::ROUNDS]}
            made = [batches(pairs) for pairs in chunks(part)]
            if number == 0:
                model(made)  # compiles
            file = Path(scratch) / f"{number}.sqlite"
            seconds = {"whole": whole(part, file), "model": model(made), "in_turn": in_turn(part)}
            rounds.append(seconds | {"pairs": sum(map(len, part.values()))})
            print(
                f"round {number + 1}: {', '.join(f'{way} {taken:.1f} s' for way, taken in seconds.items())}", flush=True
            )
    seconds_whole, seconds_model, seconds_in_turn = (
        sum(one[way] for one in rounds) for way in ("whole", "model", "in_turn")
    )
    return {
        "pairs": sum(one["pairs"] for one in rounds),
        "max_length": max_length,
        "rounds": rounds,
        "pairs_per_second": sum(one["pairs"] for one in rounds) / seconds_whole,
        "overhead": 1 - seconds_model / seconds_whole,
        "overhead_in_turn": 1 - seconds_model / seconds_in_turn,
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, default=Path("../shared/data/scifact"))
    arguments.add_argument("--max-length", type=int, default=128)
    arguments.add_argument("--depth", type=int, default=100)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PRORANK_CACHE"] = cache
        figures = measure(options.data, options.max_length, options.depth)
    if options.out:
        write(options.out, figures | {"targets": TARGETS}, libraries=["jax", "tokenizers"])
    print(
        f"overhead: {figures['overhead']:.1%} of reranking {figures['pairs']:,} pairs, "
        f"{figures['pairs_per_second']:.0f} pairs/s (target below {TARGETS['overhead']:.0%})"
    )


if __name__ == "__main__":
    main()
