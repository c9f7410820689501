"""The best recipe found for NFCorpus with a tiny model: 0.7 million parameters, two cores, under an hour.

    python benchmarks/nfcorpus_recipe.py [--data ../shared/data] [--workdir DIR] [--out FILE.json]

1. Titles: score learning from `builtin:tiny` on the documents of NFCorpus and SciFact. A title is the query, the text
   of its document is relevant, and what BM25 finds for the title besides is not. No query and no judgement is used.
2. Tuning: score learning on NFCorpus's train split, measured on queries of its dev split while it goes on.

Then BM25's best 100 of NFCorpus test and of SciFact test, on which nothing was tuned, are reranked and
measured: BM25 alone, the model alone, and both fused (weighted sum of min-max scores, weights tuned on NFCorpus dev).
Started again on the same DIR, the training goes on.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from _record import parser, write

MAX_LENGTH, DEPTH = 128, 100
COLLECTIONS = ("nfcorpus", "scifact")
SHORTEST_TITLE, SHORTEST_TEXT = 3, 100
"""Words of a title and characters of a text that are learnt from."""
SCORE: dict[str, Any] = {
    "queries_per_step": 16,
    "documents_per_query": 8,
    "loss": "listwise_softmax",
    "optimizer": {"learning_rate": 1e-3},
    "log_every": 25,
    "checkpoint_every": 100,
}
MEASURED = (("nfcorpus", "dev"), ("nfcorpus", "test"), ("scifact", "test"))
TUNED_ON = "nfcorpus dev"
TARGET = 0.01
"""By which the fused run is to be above BM25 on NFCorpus test, in nDCG@10."""


def write_titles(data: Path, out: Path) -> None:
    """Writes a BEIR folder whose queries are titles, whose documents are texts without them, judged by identity."""
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    documents, queries, judgements = [], [], ["query-id\tcorpus-id\tscore"]
    for name in COLLECTIONS:
        for line in (data / name / "corpus.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if len(row["title"].split()) >= SHORTEST_TITLE and len(row["text"]) >= SHORTEST_TEXT:
                document = f"{name}-{row['_id']}"
                documents.append({"_id": document, "text": row["text"]})
                queries.append({"_id": f"title-{document}", "text": row["title"]})
                judgements.append(f"title-{document}\t{document}\t1")
    for file, rows in (("corpus", documents), ("queries", queries)):
        (out / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (out / "qrels" / "train.tsv").write_text("\n".join(judgements) + "\n", encoding="utf-8")


def train_both(data: Path, workdir: Path, steps: tuple[int, int], seed: int) -> Path:
    """Trains both parts and returns the model's folder."""
    from prorank_jax.config_file import parse_config
    from prorank_jax.train import train

    write_titles(data, workdir / "titles")
    prompt = {"max_length": MAX_LENGTH, "order": "document_first"}
    titles = {
        "seed": seed,
        "model": {"base": "builtin:tiny"},
        "prompt": prompt,
        "data": {"path": str(workdir / "titles"), "depth": 50, "found_only": True, "random_negatives": 0.3},
        "score": {**SCORE, "steps": steps[0]},
    }
    base = train(parse_config(titles), workdir / "on-titles").export
    dev = {"path": str(data / "nfcorpus"), "split": "dev", "queries": 150, "depth": 30, "every": 100}
    tuned = {
        "seed": seed,
        "model": {"base": str(base)},
        "prompt": prompt,
        # NFCorpus judges by links between pages: six of seven relevant documents are not among the candidates.
        "data": {"path": str(data / "nfcorpus"), "depth": DEPTH, "found_only": True, "random_negatives": 0.5},
        "score": {**SCORE, "steps": steps[1], "dev": dev},
    }
    return train(parse_config(tuned), workdir / "tuned").export


def measure_all(data: Path, model: Path) -> dict[str, dict[str, float]]:
    """nDCG@10 by collection and split, of BM25, the model and both fused, and the weights that were tuned."""
    from prorank_jax.data.beir import read_beir
    from prorank_jax.data.bm25 import bm25_run
    from prorank_jax.data.ndcg import ndcg_at_10
    from prorank_jax.evaluation.fusion import fuse, tune
    from prorank_jax.evaluation.rerank import rerank
    from prorank_jax.reranker import Reranker

    reranker = Reranker.from_pretrained(model)
    collections = {f"{name} {split}": read_beir(data / name, split) for name, split in MEASURED}
    found = {name: bm25_run(collection, DEPTH) for name, collection in collections.items()}
    reranked = {name: rerank(reranker, collections[name], run) for name, run in found.items()}
    weights = tune(collections[TUNED_ON].qrels, found[TUNED_ON], reranked[TUNED_ON])
    figures: dict[str, dict[str, float]] = {}
    for name, collection in collections.items():
        runs = {"bm25": found[name], "model": reranked[name], "fused": fuse(found[name], reranked[name], weights)}
        figures[name] = {row: ndcg_at_10(collection.qrels, run) for row, run in runs.items()}
    figures["weights"] = {"bm25": weights.first_stage, "model": weights.reranker}
    return figures


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"), help="has nfcorpus and scifact")
    arguments.add_argument("--workdir", type=Path, help="keeps the runs; default: a temporary folder")
    arguments.add_argument("--steps", type=int, nargs=2, default=[900, 900], help="on titles, and of the tuning")
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        started = time.monotonic()
        workdir = (options.workdir or Path(temporary)).absolute()
        model = train_both(options.data.absolute(), workdir, tuple(options.steps), options.seed)
        minutes = (time.monotonic() - started) / 60
        figures = measure_all(options.data.absolute(), model)
    for name, row in figures.items():
        print(f"{name:>14}: " + "  ".join(f"{key} {value:.4f}" for key, value in row.items()))
    test = figures["nfcorpus test"]
    gain = test["fused"] - test["bm25"]
    headline = (
        f"NFCorpus test nDCG@10: BM25 {test['bm25']:.4f}, model {test['model']:.4f}, fused {test['fused']:.4f} "
        f"({gain:+.4f}, target {TARGET:+}); trained in {minutes:.0f} min"
    )
    if options.out:
        settings = {"steps": options.steps, "seed": options.seed, "max_length": MAX_LENGTH, "depth": DEPTH}
        record = {"headline": headline, "ndcg@10": figures, "minutes": minutes, "gain": gain, "settings": settings}
        write(options.out, record, libraries=("jax", "jaxlib", "optax", "bm25s", "ranx"))
    print(headline)


if __name__ == "__main__":
    main()
