"""Whether memory grows and programs are compiled anew over long work: both stages, and reranking.

    python benchmarks/memory_growth.py [--steps N] [--pairs N] [--out FILE.json]

Each stage trains `builtin:tiny` on the generated collection for 3,000 steps, and the model then scores 50,000 pairs of
texts of very different lengths; each in a process of its own, whose resident memory is looked at twice a second. Growth
is the median of the last tenth over the median of the second tenth, the first being warm-up; compilations are counted
behind the first tenth, for reranking behind the first pass over the lengths.
"""

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from _processes import in_fresh_process
from _record import parser, write

SECONDS = 0.5
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Sample(NamedTuple):
    """How far the work is, of 1, what memory is resident, and how many programs were compiled until now."""

    done: float
    bytes: int
    compiled: int


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def watched(work: Callable[[], None], done: Callable[[], float]) -> list[Sample]:
    """Samples of this process while it works."""
    import jax

    compiled, over = [0], threading.Event()

    def count(event: str, duration_secs: float, **_: str | int) -> None:
        compiled[0] += event == _COMPILED

    jax.monitoring.register_event_duration_secs_listener(count)
    samples: list[Sample] = []

    def look() -> None:
        while not over.wait(SECONDS):
            samples.append(Sample(done(), resident(), compiled[0]))

    thread = threading.Thread(target=look)
    thread.start()
    work()
    over.set()
    thread.join()
    return samples


def train_stage(stage: str, steps: int, folder: Path) -> list[Sample]:
    """A run of one stage."""
    from prorank_jax.config_file import parse_config
    from prorank_jax.demo.world import write_world
    from prorank_jax.train import train

    write_world(folder / "world", seed=0)
    stages: dict[str, dict[str, Any]] = {
        "warmup": {"prompts_per_step": 8, "group_size": 4, "max_new_tokens": 3, "beta": 0.05},
        "score": {"queries_per_step": 4, "documents_per_query": 4, "dev": {"every": 100, "queries": 20, "depth": 10}},
    }
    often = {"steps": steps, "log_every": 10, "checkpoint_every": 100, "optimizer": {"learning_rate": 1e-4}}
    tree: dict[str, Any] = {
        "model": {"base": "builtin:tiny"},
        "prompt": {"max_length": 160},
        "data": {"path": str(folder / "world" / "train"), "depth": 20},
        stage: stages[stage] | often,
    }
    if stage == "score":
        tree["score"]["dev"]["path"] = str(folder / "world" / "dev")
    rows = folder / "run" / stage / "metrics.jsonl"
    config = parse_config(tree)

    def done() -> float:
        return rows.read_bytes().count(b"\n") * 10 / steps if rows.exists() else 0.0

    return watched(lambda: void(train(config, folder / "run")), done)


def rerank_pairs(pairs: int) -> list[Sample]:
    """Chunks of pairs, as an evaluation gives them; the first tenth passes over all lengths."""
    import numpy as np

    from prorank_jax.demo.world import towns
    from prorank_jax.reranker import Reranker

    reranker = Reranker.from_pretrained("builtin:tiny", max_length=256)
    rng, scored = np.random.default_rng(0), [0]
    texts = [place.text for town in towns(1, 50) for place in town.places]

    def chunk(size: int) -> list[tuple[str, str]]:
        counts = rng.integers(1, 12, size)
        documents = [" ".join(texts[i] for i in rng.integers(0, len(texts), count)) for count in counts]
        return [(f"Which place is number {rng.integers(10**6)}?", document) for document in documents]

    def work() -> None:
        while scored[0] < pairs:
            pairs_now = chunk(500)
            reranker.predict(pairs_now)
            scored[0] += len(pairs_now)

    return watched(work, lambda: scored[0] / pairs)


def void(_: object) -> None:
    """Lets go of a value."""


def judged(samples: list[Sample]) -> dict[str, Any]:
    """The figures of some work."""
    begun = [sample for sample in samples if 0.1 <= sample.done < 0.2]
    ended = [sample for sample in samples if sample.done >= 0.9]
    # Behind the last step a run exports, by small programs of its own.
    trained = [sample for sample in samples if sample.done < 1.0]
    before, after = (statistics.median(sample.bytes for sample in part) for part in (begun, ended))
    return {
        "megabytes": [round(before / 1e6, 1), round(after / 1e6, 1)],
        "growth_percent": round(100 * (after / before - 1), 2),
        "compiled_before": begun[0].compiled,
        "compiled_after": trained[-1].compiled - begun[0].compiled,
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=3000, help="of each stage")
    arguments.add_argument("--pairs", type=int, default=50_000, help="to rerank")
    options = arguments.parse_args()
    figures: dict[str, Any] = {}
    for name in ("warmup", "score", "rerank"):
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            if name == "rerank":
                samples = in_fresh_process(rerank_pairs, options.pairs)
            else:
                samples = in_fresh_process(train_stage, name, options.steps, Path(folder))
        figures[name] = judged(samples) | {"seconds": round(time.monotonic() - started)}
        print(f"{name}: {figures[name]}", flush=True)
    if options.out:
        write(options.out, figures, libraries=("jax", "orbax-checkpoint"))
    growth = ", ".join(f"{name} {figures[name]['growth_percent']:+.1f} %" for name in figures)
    compiled = sum(figures[name]["compiled_after"] for name in figures)
    print(f"growth of memory: {growth}; programs compiled after the first pass: {compiled}")


if __name__ == "__main__":
    main()
