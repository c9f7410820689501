"""Our Reranker next to sentence-transformers' CrossEncoder: pairs per second of one exported folder on a CPU.

    python benchmarks/rerank_vs_cross_encoder.py [--cases scifact-10m dl19-10m half-billion] [--out FILE.json]

Both read the same folder in float32 and score the same pairs from text to numbers: BM25's best 100 documents of five
queries of SciFact, and of TREC DL 2019, by a random Qwen2 of 10 million parameters with the tokenizer of the built-in
base; and the best 20 of one query of each by a random model in the shape of Qwen2.5-0.5B, with Qwen's tokenizer. Texts
are the collections' own, cut at a word so that no prompt is longer than 512 tokens, and nothing is cut by either side.

Two processes live side by side and take turns, a pass through all pairs each time. The first pass compiles and warms
up, into an empty cache, and is told apart; of the others the medians count. CrossEncoder has its best batch size, the
one of several that was fastest on a fifth of the pairs, or on all where they are few. Memory is the most that a process
held resident. The benchmark fails unless all scores are equal to 1e-4. Measure on an idle machine.
"""

import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from _processes import Turns, alive, in_fresh_process
from _record import parser, write
from grpo_vs_trl import MODEL, write_model
from import_model import MODELS

TARGETS = {"ours_over_theirs": 1.5, "scores_apart": 1e-4}
MAX_LENGTH = 512
BATCH_SIZES = (4, 8, 16, 32)
PASSES = 3
"""Timed, behind the first."""
SHARED = Path(__file__).resolve().parents[2] / "shared"
RUNS = {"scifact": "bm25s.test.top100.trec", "trec-dl19": "bm25.top100.trec"}

Pairs = list[tuple[str, str]]


class Case(NamedTuple):
    """A model, where its tokenizer is from, and of which collections how many queries and documents of each."""

    model: dict[str, Any]
    tokenizer: str
    collections: tuple[str, ...]
    queries: int
    documents: int


# Weights so large that the scores of documents differ, and with them the scores where anything is wrong.
_SMALL = MODEL | {"initializer_range": 0.06, "max_position_embeddings": 2048}
CASES = {
    "scifact-10m": Case(_SMALL, "builtin:tiny", ("scifact",), 5, 100),
    "dl19-10m": Case(_SMALL, "builtin:tiny", ("trec-dl19",), 5, 100),
    "half-billion": Case(MODELS["Qwen2.5-0.5B"] | {"initializer_range": 0.04}, "qwen", tuple(RUNS), 1, 20),
}


class Work(NamedTuple):
    """The exported folder, and the pairs to score."""

    folder: Path
    pairs: Pairs


class Pass(NamedTuple):
    """One pass: its seconds, how many cores other processes used, the peak of resident bytes so far, the scores."""

    seconds: float
    other_cores: float
    peak_bytes: int
    scores: list[float]
    batch_size: int | None


def export(case: Case, random: Path, folder: Path) -> None:
    """Exports the random model in `random` as we export any."""
    from prorank_jax import demo
    from prorank_jax.card import Record
    from prorank_jax.config import PromptConfig
    from prorank_jax.export import export_model
    from prorank_jax.model.hf import load_pretrained
    from prorank_jax.prompt import load_prompt

    tokenizer = SHARED / "models" / "qwen2.5-tokenizer"
    if case.tokenizer == "builtin:tiny":
        tokenizer = Path(demo.__path__[0]) / "tiny_base"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, random)
    pretrained = load_pretrained(random)
    prompt = load_prompt(pretrained, PromptConfig(max_length=2 * MAX_LENGTH), str(random))
    export_model(folder, pretrained, pretrained.params, prompt, Record("random"))


def read_pairs(case: Case, folder: Path) -> tuple[Pairs, list[int]]:
    """The pairs of a case, and the tokens of each prompt."""
    from prorank_jax.config import PromptConfig
    from prorank_jax.data.candidates import candidates
    from prorank_jax.data.collections import open_collection
    from prorank_jax.model.hf import read_folder
    from prorank_jax.prompt import load_prompt

    prompt = load_prompt(read_folder(folder), PromptConfig(max_length=2 * MAX_LENGTH), str(folder))
    found: Pairs = []
    for name in case.collections:
        place = SHARED / "data" / name
        collection = open_collection(place, "test")
        run = candidates(collection, str(place / "runs" / RUNS[name]), case.documents)
        for query_id in list(run)[: case.queries]:
            for document_id, _ in run[query_id]:
                words = collection.documents[document_id].split()
                pair = collection.queries[query_id], " ".join(words)
                while len(prompt.encode(*pair)) > MAX_LENGTH:
                    words = words[: len(words) * 9 // 10]
                    pair = collection.queries[query_id], " ".join(words)
                found.append(pair)
    return found, [len(ids) for ids in prompt.encode_batch(found)]


def serve_ours(turns: Turns, work: Work) -> None:
    """Our passes, one each time it is asked."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from prorank_jax import Reranker

    reranker = Reranker.from_pretrained(work.folder)
    while True:
        turns.begin()
        scores = reranker.predict(work.pairs)
        turns.end()
        _report(turns, scores.tolist(), None)


def serve_theirs(turns: Turns, work: Work) -> None:
    """CrossEncoder's passes; the first one is with 8 pairs a batch, and behind it the best batch size is found."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from sentence_transformers import CrossEncoder

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = CrossEncoder(str(work.folder), device="cpu")
    if model.dtype != torch.float32:
        raise SystemExit(f"sentence-transformers read the folder as {model.dtype}; expected float32")
    batch_size = 8
    first = True
    while True:
        turns.begin()
        scores = model.predict(work.pairs, batch_size=batch_size, show_progress_bar=False)
        turns.end()
        if first:
            batch_size, first = _best_batch_size(model, work.pairs), False
        _report(turns, scores.tolist(), batch_size)


def _best_batch_size(model: Any, pairs: Pairs) -> int:
    sample = pairs if len(pairs) <= 100 else pairs[::5]
    seconds = {}
    for batch_size in BATCH_SIZES:
        start = time.perf_counter()
        model.predict(sample, batch_size=batch_size, show_progress_bar=False)
        seconds[batch_size] = time.perf_counter() - start
    return min(seconds, key=lambda size: seconds[size])


def _report(turns: Turns, scores: list[float], batch_size: int | None) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    turns.pipe.send(Pass(turns.seconds, turns.others / turns.seconds, peak, scores, batch_size))


def measure(name: str, scratch: Path) -> dict[str, Any]:
    """All passes of both, in turns."""
    case = CASES[name]
    random, folder = scratch / "random", scratch / "exported"
    parameters = in_fresh_process(write_model, random, case.model)
    in_fresh_process(export, case, random, folder)
    shutil.rmtree(random)
    pairs, lengths = in_fresh_process(read_pairs, case, folder)
    systems: dict[str, Callable[[Turns, Work], None]] = {"ours": serve_ours, "theirs": serve_theirs}
    passes: dict[str, list[Pass]] = {side: [] for side in systems}
    with ExitStack() as stack:
        ask: dict[str, Callable[[], Any]] = {}
        for side, serve in systems.items():
            child: Any = serve  # `alive` hands over whatever the child takes
            task: Any = Work(folder, pairs)
            ask[side] = stack.enter_context(alive(side, child, task))
            passes[side].append(ask[side]())
        for _ in range(PASSES):
            for side in systems:
                passes[side].append(ask[side]())
    apart = max(abs(a - b) for a, b in zip(passes["ours"][-1].scores, passes["theirs"][-1].scores, strict=True))
    if apart > TARGETS["scores_apart"]:
        raise SystemExit(f"{name}: scores are {apart:.1e} apart; the times say nothing")
    return {
        "parameters": parameters,
        "pairs": len(pairs),
        "prompt_tokens": {"least": min(lengths), "mean": statistics.mean(lengths), "most": max(lengths)},
        "scores_apart": apart,
        "scores_deviation": statistics.pstdev(passes["theirs"][-1].scores),
        "batch_size": passes["theirs"][-1].batch_size,
        **{side: summary(of, len(pairs)) for side, of in passes.items()},
    }


def summary(passes: list[Pass], pairs: int) -> dict[str, Any]:
    """What is written of one side."""
    timed = [one.seconds for one in passes[1:]]
    return {
        "pairs_per_second": pairs / statistics.median(timed),
        "seconds": timed,
        "first_call_seconds": passes[0].seconds,
        "peak_mib": passes[-1].peak_bytes / 2**20,
        "other_cores": statistics.mean(one.other_cores for one in passes[1:]),
    }


def faster(case: dict[str, Any]) -> float:
    """Our pairs per second over theirs."""
    return float(case["ours"]["pairs_per_second"] / case["theirs"]["pairs_per_second"])


def line(name: str, case: dict[str, Any]) -> str:
    """One line of the table."""
    sides = "".join(
        f"{case[side]['pairs_per_second']:9.1f}{case[side]['first_call_seconds']:9.1f}{case[side]['peak_mib']:8.0f}"
        for side in ("ours", "theirs")
    )
    return f"{name:14}{sides}{faster(case):8.2f}{case['scores_apart']:10.1e}{case['batch_size']:6}"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--cases", choices=list(CASES), nargs="+", default=list(CASES))
    options = arguments.parse_args()
    columns = "".join(f"{side + '/s':>9}{'first':>9}{'MiB':>8}" for side in ("ours", "theirs"))
    print(f"{'':14}{columns}{'ratio':>8}{'apart':>10}{'batch':>6}")
    cases = {}
    for name in options.cases:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["PRORANK_CACHE"] = str(Path(scratch) / "cache")
            cases[name] = measure(name, Path(scratch))
        print(line(name, cases[name]), flush=True)
    ratios = {name: faster(case) for name, case in cases.items()}
    if options.out:
        figures = {"ours_over_theirs": ratios, "cases": cases, "targets": TARGETS, "max_length": MAX_LENGTH}
        libraries = ("jax", "jaxlib", "torch", "transformers", "sentence-transformers")
        write(options.out, figures, libraries=libraries)
    told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    print(f"ours / CrossEncoder, pairs per second: {told} (target {TARGETS['ours_over_theirs']} each)")


if __name__ == "__main__":
    main()
