"""Many collections and several models: retrieve, rerank, measure and compare, in one folder that resumes by itself.

    OUT/first-stage/<collection>-<split>/    the candidates of each collection
    OUT/<model>/<collection>-<split>/        what `evaluate.py` writes
    OUT/summary.json, report.md, report.tex, report.html

A model's fusion with the first stage has a folder of its own, `<model>+first-stage`. A collection that is listed at
several depths is called `<collection>-<split>-top<depth>`. What is finished is not done again, and no pair is scored
twice (`evaluation/score_cache.py`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from prorank_jax.data.beir import Collection
from prorank_jax.data.collections import open_collection, splits
from prorank_jax.data.runs import Run, read_run
from prorank_jax.errors import InputError
from prorank_jax.evaluate import RUN_FILE, Evaluation, Summary
from prorank_jax.evaluation.cost import Work, estimate, total, work_of
from prorank_jax.evaluation.first_stage import FirstStage, kept_candidates
from prorank_jax.evaluation.folder import Digests
from prorank_jax.evaluation.fusion import fuse, tune
from prorank_jax.evaluation.measures import DEFAULT_METRICS
from prorank_jax.evaluation.rerank import nothing, without
from prorank_jax.evaluation.suites import SuiteConfig
from prorank_jax.prompt import Prompt
from prorank_jax.reranker import Reranker
from prorank_jax.run_folder import CONFIG_FILE
from prorank_jax.storage import Place, exists, in_bucket, place

FIRST_STAGE = "first-stage"
_NAME = re.compile(r"[\w.+-]+")
_NOT_A_NAME = re.compile(r"[^\w.+-]+")


class Settings(NamedTuple):
    """What holds for every collection that a suite says nothing else of."""

    first_stage: FirstStage = FirstStage()
    metrics: tuple[str, ...] = DEFAULT_METRICS
    instruction: str | None = None
    fuse: str | None = None
    """The split on which the fusion with the first stage is tuned; collections without it are not fused."""


@dataclass(frozen=True)
class Job:
    """A collection of a suite, opened, with how it is to be evaluated."""

    source: str
    collection: Collection
    first_stage: FirstStage
    instruction: str | None
    tuning: Collection | None = None
    """The split on which fusion is tuned."""
    suffix: str = ""
    """Of its folders' names; tells apart several depths of one collection."""

    @property
    def slug(self) -> str:
        """The name of the collection's folders."""
        return self.name_of(self.collection)

    def name_of(self, collection: Collection) -> str:
        """The name of the folders of the collection, or of the split on which fusion is tuned."""
        return f"{slug(collection)}{self.suffix}"


def slug(collection: Collection) -> str:
    """A folder's name for a split of a collection."""
    return f"{collection.name.replace('/', '-')}-{collection.split}"


def open_jobs(suite: SuiteConfig, settings: Settings) -> tuple[Job, ...]:
    """Opens every collection of a suite, which downloads and prepares those that are not there yet.

    Raises:
      InputError: a collection cannot be opened, one is listed twice at the same depth or two have the same name, or no
        collection has the split to tune on, or one would be tuned on what is reported.
    """
    jobs: list[Job] = []
    for entry in suite.collections:
        stage = settings.first_stage._replace(
            source=entry.first_stage or settings.first_stage.source, depth=entry.depth or settings.first_stage.depth
        )
        instruction = settings.instruction if entry.instruction is None else entry.instruction
        job = Job(entry.data, open_collection(entry.data, entry.split), stage, instruction)
        if settings.fuse == entry.split:
            raise InputError(
                f"--fuse={settings.fuse}: is the split of {entry.data} that is reported; tune on another one"
            )
        if settings.fuse is not None and settings.fuse in splits(entry.data):
            job = replace(job, tuning=open_collection(entry.data, settings.fuse))
        jobs.append(job)
    jobs = _by_depth(jobs)
    for number, job in enumerate(jobs):
        if same := next((other for other in jobs[:number] if other.slug == job.slug), None):
            raise InputError(
                f"{job.source}: {job.slug} is what {same.source} is called as well; rename the folder, leave one out, "
                "or give each another depth"
            )
    if settings.fuse is not None and not any(job.tuning for job in jobs):
        raise InputError(f"--fuse={settings.fuse}: no collection has this split; name one that they have")
    return tuple(jobs)


def _by_depth(jobs: Sequence[Job]) -> list[Job]:
    """The jobs; those of one collection and split, at several depths, have the depth in their names."""
    depths: dict[str, set[int]] = {}
    for job in jobs:
        depths.setdefault(job.slug, set()).add(job.first_stage.depth)
    return [replace(job, suffix=f"-top{job.first_stage.depth}") if len(depths[job.slug]) > 1 else job for job in jobs]


class Model(NamedTuple):
    """A model to evaluate, with the name that tables and folders have for it."""

    label: str
    source: str


@dataclass(frozen=True)
class System:
    """What one column of the tables shows: a model, its fusion with the first stage, or the first stage itself."""

    label: str
    folders: dict[str, Path] = field(default_factory=dict)
    """Slug of a collection -> the folder with its figures."""
    summaries: dict[str, Summary] = field(default_factory=dict)

    def add(self, job: Job, folder: Path, summary: Summary) -> None:
        """The figures of a collection."""
        self.folders[job.slug] = folder
        self.summaries[job.slug] = summary


def name_models(sources: Sequence[str]) -> list[Model]:
    """Models by the names of their folders; `NAME=SOURCE` gives another name.

    `["runs/a/export", "org/model", "b=runs/a/score"]` are called `a`, `org-model` and `b`.

    Raises:
      InputError: two have the same name.
    """
    models: list[Model] = []
    for given in sources:
        name, equals, source = given.partition("=")
        if not equals or Path(given).exists() or not _NAME.fullmatch(name):
            source = given
            name = _NOT_A_NAME.sub("-", _folder_name(source)).strip("-")
        if name == FIRST_STAGE or name in [model.label for model in models]:
            raise InputError(f"--model={given}: {name!r} names another column already; write --model NAME={source}")
        models.append(Model(name, source))
    return models


@dataclass(frozen=True)
class Folders:
    """Where the work on a suite is; that on one collection and one model is in a single folder.

    Args:
      scores: the folder of the kept scores; default: in the cache folder.
    """

    out: Path
    single: bool = False
    scores: Path | None = None

    def candidates(self, name: str) -> Path:
        """The folder of a collection's candidates; `name` as `Job.name_of`."""
        return self.out if self.single else self.out / FIRST_STAGE / name

    def figures(self, label: str, name: str) -> Path:
        """The folder of a model's figures on a collection."""
        return self.out if self.single else self.out / label / name


class Retrieved(NamedTuple):
    """The candidates of a collection, read and hashed once for all models."""

    run: Run
    digests: Digests


@dataclass(frozen=True)
class Suite:
    """Collections, and how they are evaluated; `tell` is called with lines for the user while the work goes on."""

    jobs: tuple[Job, ...]
    folders: Folders
    settings: Settings
    tell: Callable[[str], None]
    kept: Callable[[], None] = nothing
    """Called after each chunk of work that need not be done again."""
    _retrieved: dict[str, Retrieved] = field(default_factory=dict)

    def measure(
        self,
        models: Sequence[Model],
        load: Callable[[Model], Reranker],
        measured: Callable[[Place, Summary, Prompt], None],
        check: Callable[[Model], None] = lambda model: None,
    ) -> list[System]:
        """Evaluates every model on every collection, one model in memory at a time; without models, the first stage.

        Args:
          load: makes a reranker of a model; called once a model, when the one before is gone.
          measured: called with each model folder, the figures of a collection, and the model's prompt.
          check: refuses a model that cannot be loaded, without loading it; called with all but the first.

        Raises:
          InputError: as `Evaluation.write`, `first_stage.kept_candidates`, `load` and `check`.
        """
        if not models:
            return [self._measured(FIRST_STAGE, None)]
        # Before hours of work on the first; that one is refused as soon as it is loaded.
        for model in models[1:]:
            check(model)
        return [system for model in models for system in self._of_model(model, load, measured)]

    def _of_model(
        self, model: Model, load: Callable[[Model], Reranker], measured: Callable[[Place, Summary, Prompt], None]
    ) -> list[System]:
        """A model and its fusion with the first stage. Nothing outside of this call holds the reranker."""
        reranker = load(model)
        for line in self.cost(model, reranker):
            self.tell(line)
        system = self._measured(model.label, reranker)
        if in_bucket(model.source) or Path(model.source).is_dir():
            for summary in system.summaries.values():
                measured(place(model.source), summary, reranker.prompt)
        fused = self._fused(system, reranker)
        return [system, fused] if fused.summaries else [system]

    def cost(self, model: Model, reranker: Reranker) -> list[str]:
        """What is left to rerank for a model: a line for each collection, and one for all."""
        works: dict[str, Work] = {}
        planned: dict[Path, list[Run]] = {}
        for job in self.jobs:
            for collection in filter(None, (job.collection, job.tuning)):
                evaluation, name = self._evaluation(reranker, job, collection), job.name_of(collection)
                left = evaluation.left(self.folders.figures(model.label, name))
                # What an entry before this one will score.
                before = planned.setdefault(evaluation.score_file, [])
                for other in before:
                    left = without(left, {query: [document for document, _ in other[query]] for query in other})
                before.append(left)
                if left:
                    works[name] = work_of(collection, left, job.instruction)
        if not works:
            return [f"{model.label}: nothing is left to rerank"]
        costs = estimate(reranker, list(works.values()))
        lines = [f"{model.label}, {name}: {cost}" for name, cost in zip(works, costs, strict=True)]
        return [*lines, f"{model.label}, all: {total(costs)}"] if len(works) > 1 else lines

    def _measured(self, label: str, reranker: Reranker | None) -> System:
        system = System(label)
        for job in self.jobs:
            folder = self.folders.figures(label, job.slug)
            summary = self._evaluation(reranker, job, job.collection).write(folder, show_progress=True)
            system.add(job, folder, summary)
        return system

    def _fused(self, system: System, reranker: Reranker) -> System:
        """The model's order and the first stage's as one, weighted as is best on another split."""
        fused = System(f"{system.label}+{FIRST_STAGE}")
        for job in (job for job in self.jobs if job.tuning is not None):
            assert job.tuning is not None
            tuning = self._evaluation(reranker, job, job.tuning)
            folder = self.folders.figures(system.label, job.name_of(job.tuning))
            tuning.write(folder, show_progress=True)
            weights = tune(job.tuning.qrels, tuning.run, _ranked(folder, tuning.run))
            evaluation = self._evaluation(reranker, job, job.collection)
            ranked = fuse(evaluation.run, _ranked(system.folders[job.slug], evaluation.run), weights)
            folder = self.folders.figures(fused.label, job.slug)
            about = {"fusion": {"tuned_on": job.tuning.split, **weights._asdict()}}
            fused.add(job, folder, evaluation.write_ranked(folder, ranked, tag="fused", about=about))
        return fused

    def _evaluation(self, reranker: Reranker | None, job: Job, collection: Collection) -> Evaluation:
        """Of a job's collection, or of the split that its fusion is tuned on."""
        run, digests = self._retrieve(job, collection)
        return Evaluation(
            reranker,
            collection,
            run,
            first_stage=job.first_stage.protocol(collection),
            depth=job.first_stage.depth,
            metrics=self.settings.metrics,
            instruction=job.instruction if reranker else None,
            kept=self.kept,
            scores=self.folders.scores,
            digests=digests,
        )

    def _retrieve(self, job: Job, collection: Collection) -> Retrieved:
        name = job.name_of(collection)
        if name not in self._retrieved:
            folder = self.folders.candidates(name)
            run = kept_candidates(collection, job.first_stage, folder, show_progress=True)
            self._retrieved[name] = Retrieved(run, Digests.of(collection, run))
        return self._retrieved[name]


def default_out(models: Sequence[Model], suite: str | None, jobs: Sequence[Job], single: bool) -> Place:
    """`evaluation/NAME` in the run folder that the only model is of, else here; NAME is the suite or the collection.

    Here, one collection's folder lies in one of the model's name: another model does not replace its figures.

    Args:
      suite: as the command line names it.
    """
    name = jobs[0].slug if suite is None else Path(suite).stem
    if len(models) == 1 and exists((run := place(models[0].source).parent) / CONFIG_FILE):
        return run / "evaluation" / name
    of_model = models[0].label if models else FIRST_STAGE
    return Path("evaluation") / of_model / name if single else Path("evaluation") / name


def _ranked(folder: Path, run: Run) -> Run:
    """The written order of the queries that have candidates; the others have a placeholder there."""
    written = read_run(folder / RUN_FILE)
    return {query_id: written[query_id] for query_id, ranking in run.items() if ranking}


def _folder_name(source: str) -> str:
    """`a` of `runs/a/export`; hub ids and builtins as they are."""
    path = Path(source)
    if not in_bucket(source):
        if not path.exists():
            return source
        path = path.resolve()
    return path.parent.name if path.name == "export" else path.name
