"""The worlds and cells of `paper_in_miniature.py`: how each cell's model is trained, and how it is measured.

A cell is a model: that of another cell, trained on by one stage of the library. Its run folder keeps the exported
model, from which other cells begin and which is measured. The teacher begins from a cell's model with every layer
followed by a second one that adds nothing yet; its scores are written beside the groups that score learning draws.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prorank_jax.config_file import parse_config
from prorank_jax.data.beir import Collection, read_beir
from prorank_jax.data.candidate_table import Candidates
from prorank_jax.data.candidates import open_candidates
from prorank_jax.data.examples import JudgedSource, Selection
from prorank_jax.data.jsonl import write_rows
from prorank_jax.data.ndcg import ndcg_at_10
from prorank_jax.data.runs import Run
from prorank_jax.data.stream import groups, pairs
from prorank_jax.demo.world import write_world
from prorank_jax.evaluation.rerank import rerank
from prorank_jax.model.families import decoder_config
from prorank_jax.model.hf import load_pretrained, save_pretrained
from prorank_jax.reranker import Reranker
from prorank_jax.teacher import score_file
from prorank_jax.train import train
from prorank_jax.warmup.probe import answer_rates

BASE = "builtin:tiny"
PROBED_PAIRS = 256
EVERY = {"log_every": 20, "checkpoint_every": 50}


@dataclass(frozen=True)
class World:
    """A collection and the settings that fit it; steps are those of a whole run."""

    max_length: int
    depth: int
    """Candidates of a training query."""
    test_depth: int
    """Candidates reranked per test query."""
    warmup: Mapping[str, Any]
    score: Mapping[str, Any]
    selection: Mapping[str, Any]


WORLDS = {
    "demo": World(
        max_length=108,
        depth=30,
        test_depth=30,
        warmup={"steps": 300, "prompts_per_step": 32, "optimizer": {"learning_rate": 5e-4}},
        score={
            "steps": 40,
            "queries_per_step": 16,
            "documents_per_query": 6,
            "temperature": 3.0,
            "optimizer": {"learning_rate": 1e-3},
        },
        selection={},
    ),
    "nfcorpus": World(
        max_length=96,
        depth=100,
        test_depth=20,
        warmup={"steps": 40, "prompts_per_step": 32, "optimizer": {"learning_rate": 2e-4}},
        score={
            "steps": 80,
            "queries_per_step": 12,
            "documents_per_query": 6,
            "temperature": 3.0,
            "optimizer": {"learning_rate": 1e-3},
        },
        selection={"found_only": True, "random_negatives": 0.5},
    ),
}
METHODS: dict[str, dict[str, Any]] = {
    "supervised": {"method": "supervised"},
    "grpo": {"method": "grpo", "group_size": 8, "max_new_tokens": 3, "show_completions_every": 0},
}


@dataclass(frozen=True)
class Cell:
    """One row of the table."""

    title: str
    begins: str | None = None
    """The cell whose model is trained on; None is the base as it is."""
    warmup: str | None = None
    """The method of a prompt warmup; None is score learning."""
    score: Mapping[str, Any] = field(default_factory=dict)
    """Settings of score learning other than the world's."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training data other than the world's."""
    rows: bool = False
    """Learns from the rows that the teacher scored."""
    larger: bool = False
    """Twice the layers and twice the steps."""


CELLS = {
    "base": Cell("(a) base"),
    "supervised": Cell("(b) supervised warmup", "base", warmup="supervised"),
    "grpo": Cell("(c) GRPO warmup", "base", warmup="grpo"),
    "base-score": Cell("(d) score learning from the base", "base"),
    "supervised-score": Cell("(e) supervised warmup, score learning", "supervised"),
    "grpo-score": Cell("(f) GRPO warmup, score learning", "grpo"),
    "base-score-t1": Cell("(d) with temperature 1", "base", score={"temperature": 1.0}),
    "grpo-score-t1": Cell("(f) with temperature 1", "grpo", score={"temperature": 1.0}),
    **{
        f"loss-{loss}": Cell(f"(f) with {loss}", "grpo", score={"loss": loss})
        for loss in ("bce", "mse", "margin_mse", "ranknet", "list_mle", "lambda_loss")
    },
    "random-negatives": Cell("(f) without hard negatives", "grpo", data={"random_negatives": 1.0}),
    "teacher": Cell("the teacher: (f), twice the layers and steps", "grpo", larger=True),
    "rows-labels": Cell("(f) on the teacher's rows: labels", "grpo", rows=True),
    "rows-softmax": Cell(
        "(f) on the teacher's rows: its scores, softmax", "grpo", data={"target": "softmax"}, rows=True
    ),
    "rows-margin": Cell(
        "(f) on the teacher's rows: its scores, by margin_mse",
        "grpo",
        score={"loss": "margin_mse"},
        data={"target": "score"},
        rows=True,
    ),
}


@dataclass(frozen=True)
class Place:
    """A world with a seed, and the folder that keeps what is made for it."""

    name: str
    seed: int
    folder: Path
    data: Path
    """Where the BEIR folders of real collections are."""
    steps_scale: float

    @property
    def world(self) -> World:
        return WORLDS[self.name]

    def collection(self, split: str) -> Path:
        """The BEIR folder of a split; that of the demo is generated from the seed."""
        if self.name != "demo":
            return self.data / self.name
        if not (self.folder / "world" / "test" / "qrels" / "test.tsv").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_world(self.folder / "world", self.seed)
        return self.folder / "world" / split

    def ready(self, name: str) -> None:
        """Makes all that a cell begins from, so that the time of the cell is its own."""
        cell = CELLS[name]
        if cell.begins is not None:
            self.model(cell.begins)
        if cell.rows:
            self.scored_rows()

    def model(self, name: str) -> str:
        """The folder of a cell's model, trained where it is not there yet."""
        cell = CELLS[name]
        if cell.begins is None:
            return BASE
        folder = self.folder / "runs" / name
        if not (folder / "export").exists():
            train(parse_config(self.configuration(name, cell), source=name), folder)
        return str(folder / "export")

    def configuration(self, name: str, cell: Cell) -> dict[str, Any]:
        """The configuration of a cell's run."""
        assert cell.begins is not None
        base = self.model(cell.begins)
        data = {"path": str(self.collection("train")), "split": "train", "depth": self.world.depth}
        data |= self.world.selection
        if cell.rows:
            data = {"path": str(self.scored_rows())}
        if cell.larger:
            base = str(grow(Path(base), self.folder / "runs" / f"{name}-base"))
        if cell.warmup is not None:
            stage = {"warmup": {**self.world.warmup, **METHODS[cell.warmup], **EVERY}}
        else:
            stage = {"score": {**self.world.score, **EVERY, **cell.score}}
        for section in stage.values():
            section["steps"] = self.steps(section["steps"] * (2 if cell.larger else 1))
        prompt = {"max_length": self.world.max_length, "order": "document_first"}
        return {"seed": self.seed, "model": {"base": base}, "prompt": prompt, "data": {**data, **cell.data}, **stage}

    def steps(self, whole: int) -> int:
        """Steps of a stage, of a whole run's."""
        return max(1, round(whole * self.steps_scale))

    def scored_rows(self) -> Path:
        """The groups that score learning draws from the collection, with the teacher's scores beside their labels."""
        rows, scored = self.folder / "rows.jsonl", self.folder / "rows-scored.jsonl"
        if not scored.exists():
            train_folder, score = self.collection("train"), self.world.score
            collection = read_beir(train_folder, "train")
            source = judged_source(collection, open_candidates(collection, "bm25", self.world.depth), self.world)
            stream = groups([source], [1.0], self.seed, score["documents_per_query"])
            with write_rows(rows) as write:
                for group in islice(stream, self.steps(score["steps"]) * score["queries_per_step"]):
                    write({"query": group.query, "documents": list(group.documents), "labels": list(group.labels)})
            score_file(Reranker.from_pretrained(self.model("teacher")), rows, scored)
        return scored

    def measure(self, name: str) -> dict[str, float]:
        """`format_rate`, `accuracy` and `ndcg@10` of a cell's model on the test split."""
        reranker = Reranker.from_pretrained(self.model(name), max_length=self.world.max_length, order="document_first")
        collection, run, examples = self._test
        asked = [(example.query, example.document) for example in examples]
        labels = np.array([example.label for example in examples], np.int32)
        rates = answer_rates(reranker.decoder, reranker.params, reranker.prompt, asked, labels)
        return rates | {"ndcg@10": ndcg_at_10(collection.qrels, rerank(reranker, collection, run))}

    def first_stage(self) -> float:
        """nDCG@10 of the candidates as BM25 orders them."""
        collection, run, _ = self._test
        return ndcg_at_10(collection.qrels, run)

    @cached_property
    def _test(self) -> tuple[Collection, Run, list[Any]]:
        collection = read_beir(self.collection("test"), "test")
        found = open_candidates(collection, "bm25", self.world.test_depth)
        examples = pairs([judged_source(collection, found, self.world)], [1.0], self.seed).rows(range(PROBED_PAIRS))
        return collection, dict(found), examples


def judged_source(collection: Collection, candidates: Candidates, world: World) -> JudgedSource:
    """What a world's examples are drawn from."""
    return JudgedSource.from_collection(collection, candidates, Selection(**world.selection))


def grow(source: Path, out: Path) -> Path:
    """Writes the model of a folder with twice the layers and the same logits: behind each layer stands a copy of it
    whose attention and mlp give 0, as the maps that end them are 0. These learn from the first step on, and the rest
    of the copy once they are not 0.
    """
    if out.exists():
        return out
    pretrained = load_pretrained(source)
    layers = jax.tree.map(lambda stacked: np.repeat(np.asarray(stacked), 2, axis=0), pretrained.params["layers"])
    for last in (layers["attention"]["output"], layers["mlp"]["down"]):
        last["kernel"][1::2] = 0.0
    hf_config = pretrained.hf_config | {"num_hidden_layers": 2 * pretrained.config.layers}
    unfinished = out.with_name(out.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    config = decoder_config(hf_config, str(unfinished / "config.json"))
    save_pretrained(unfinished, {**pretrained.params, "layers": layers}, config, hf_config)
    return unfinished.rename(out)
