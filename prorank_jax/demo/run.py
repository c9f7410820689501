"""`prorank demo`: the whole way on the built-in tiny base and a generated collection, on a CPU in minutes."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from prorank_jax.atomic import write_atomically
from prorank_jax.card import add_measurement
from prorank_jax.config import RunConfig
from prorank_jax.config_file import parse_config
from prorank_jax.data.beir import read_beir
from prorank_jax.data.candidates import open_candidates
from prorank_jax.data.examples import JudgedSource, Selection
from prorank_jax.data.stream import pairs
from prorank_jax.demo.world import write_world
from prorank_jax.evaluate import Evaluation
from prorank_jax.evaluation.first_stage import FirstStage
from prorank_jax.export import saved_parameters
from prorank_jax.model.hf import load_pretrained
from prorank_jax.report import write_report
from prorank_jax.reporting.curves import plot_curves
from prorank_jax.reranker import Reranker
from prorank_jax.run_folder import check_run_folder, warmed_up
from prorank_jax.train import train
from prorank_jax.warmup.probe import answer_rates

DEPTH = 30
PROBED_PAIRS = 512


def demo_config(world: Path, seed: int) -> RunConfig:
    """The demo's configuration: a batch small enough for two cores, a learning rate fit for a tiny model."""
    return parse_config(
        {
            "seed": seed,
            "model": {"base": "builtin:tiny"},
            "prompt": {"max_length": 108, "order": "document_first"},
            "data": {"path": str(world / "train"), "split": "train", "depth": DEPTH},
            "warmup": {
                "steps": 100,
                "prompts_per_step": 32,
                "group_size": 8,
                "max_new_tokens": 3,
                "optimizer": {"learning_rate": 5e-4},
                "log_every": 2,
                "checkpoint_every": 50,
                "show_completions_every": 10,
            },
            "score": {
                "steps": 120,
                "queries_per_step": 16,
                "documents_per_query": 6,
                "optimizer": {"learning_rate": 1e-3},
                "log_every": 2,
                "checkpoint_every": 40,
            },
        },
        source="demo",
    )


def run_demo(workdir: Path, seed: int) -> dict[str, Any]:
    """Trains both stages, measures each on unseen towns, and writes `summary.json`, `curves.png` and `report.html`.

    Returns:
      the summary: `{"seed", "seconds", "queries", "rows": {"bm25", "base", "warmup", "score"}}`; a row holds
      `ndcg@10`, and for the two models that answer in text also `format_rate` and `accuracy`.
    """
    started = time.monotonic()
    world = workdir / "world"
    config = demo_config(world, seed)
    check_run_folder(config, workdir)
    write_world(world, seed)
    trained = train(config, workdir)

    test = read_beir(world / "test", "test")
    found = open_candidates(test, "bm25", DEPTH)
    run = dict(found)
    probed = pairs([JudgedSource.from_collection(test, found, Selection())], [1.0], seed).rows(range(PROBED_PAIRS))
    texts = [(example.query, example.document) for example in probed]
    labels = np.array([example.label for example in probed], np.int32)
    rows: dict[str, dict[str, float]] = {}
    base = load_pretrained(config.model.base)
    assert config.warmup is not None
    answering = saved_parameters(workdir, config, warmed_up(workdir, config.warmup), base.config)
    models = {"bm25": None, "base": base.params, "warmup": answering, "score": trained.final}
    for name, params in models.items():
        reranker = None if params is None else Reranker(trained.decoder, params, trained.prompt)
        out = workdir / "evaluation" / name
        figures = Evaluation(reranker, test, run, FirstStage().protocol(test), DEPTH).write(out, show_progress=True)
        rows[name] = {"ndcg@10": figures["metrics"]["ndcg@10"]}
        if name == "score":
            add_measurement(trained.export, figures, trained.prompt)
        if params is not None and name != "score":
            rows[name] = answer_rates(trained.decoder, params, trained.prompt, texts, labels) | rows[name]
    plot_curves(workdir, workdir / "curves.png")
    seconds = round(time.monotonic() - started, 1)
    summary = {"seed": seed, "seconds": seconds, "queries": len(test.queries), "rows": rows}
    write_atomically(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_report(workdir)
    return summary
