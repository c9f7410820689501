"""Many collections and several models: retrieve, rerank, measure and compare, in one folder that goes on by itself.

    OUT/first-stage/<collection>-<split>/    the candidates of each collection
    OUT/<model>/<collection>-<split>/        what `evaluate.py` writes
    OUT/summary.json, report.md, report.tex, report.html

A model's fusion with the first stage has a folder of its own, `<model>+first-stage`. What is finished is not done
again, and what was cut goes on, as long as model, collection and settings are the same.
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
from prorank_jax.evaluate import RUN_FILE, Evaluation, Summary, nothing
from prorank_jax.evaluation.cost import Work, estimate, total, work_of
from prorank_jax.evaluation.first_stage import FirstStage, kept_candidates
from prorank_jax.evaluation.fusion import fuse, tune
from prorank_jax.evaluation.measures import DEFAULT_METRICS
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

    @property
    def slug(self) -> str:
        """The name of the collection's folders."""
        return slug(self.collection)


def slug(collection: Collection) -> str:
    """A folder's name for a split of a collection."""
    return f"{collection.name.replace('/', '-')}-{collection.split}"


def open_jobs(suite: SuiteConfig, settings: Settings) -> tuple[Job, ...]:
    """Opens every collection of a suite, which downloads and prepares those that are not there yet.

    Raises:
      InputError: a collection cannot be opened, two would be written to one folder, or no collection has the split to
        tune on, or one would be tuned on what is reported.
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
        if same := next((other for other in jobs if other.slug == job.slug), None):
            raise InputError(
                f"{entry.data}: {job.slug} is what {same.source} is called as well; rename the folder, or leave one out"
            )
        jobs.append(job)
    if settings.fuse is not None and not any(job.tuning for job in jobs):
        raise InputError(f"--fuse={settings.fuse}: no collection has this split; name one that they have")
    return tuple(jobs)


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
    """Where the work on a suite lies; that on one collection and one model lies in a single folder."""

    out: Path
    single: bool = False

    def candidates(self, collection: Collection) -> Path:
        return self.out if self.single else self.out / FIRST_STAGE / slug(collection)

    def figures(self, label: str, collection: Collection) -> Path:
        return self.out if self.single else self.out / label / slug(collection)


@dataclass(frozen=True)
class Suite:
    """Collections, and how they are evaluated; `tell` is called with lines for the user while the work goes on."""

    jobs: tuple[Job, ...]
    folders: Folders
    settings: Settings
    tell: Callable[[str], None]
    kept: Callable[[], None] = nothing
    """Called after each chunk of work that need not be done again."""

    def measure(
        self,
        models: Sequence[Model],
        load: Callable[[Model], Reranker],
        measured: Callable[[Place, Summary, Prompt], None],
    ) -> list[System]:
        """Evaluates every model on every collection, one model in memory at a time; without models, the first stage.

        Args:
          load: makes a reranker of a model.
          measured: called with each model folder, the figures of a collection, and the model's prompt.

        Raises:
          InputError: as `Evaluation.write` and `first_stage.kept_candidates`.
        """
        if not models:
            return [self._measured(FIRST_STAGE, None)]
        # What cannot be loaded is refused before hours of work on the models before it.
        for model in models[1:]:
            load(model)
        systems = []
        for model in models:
            reranker = load(model)
            for line in self.cost(model, reranker):
                self.tell(line)
            system = self._measured(model.label, reranker)
            if in_bucket(model.source) or Path(model.source).is_dir():
                for summary in system.summaries.values():
                    measured(place(model.source), summary, reranker.prompt)
            fused = self._fused(system, reranker)
            systems += [system, fused] if fused.summaries else [system]
        return systems

    def cost(self, model: Model, reranker: Reranker) -> list[str]:
        """What is left to rerank for a model: a line for each collection, and one for all."""
        works: dict[str, Work] = {}
        for job in self.jobs:
            for collection in filter(None, (job.collection, job.tuning)):
                evaluation = self._evaluation(reranker, job, collection)
                done = evaluation.queries_done(self.folders.figures(model.label, collection))
                work = work_of(collection, evaluation.run, done, job.instruction)
                works |= {slug(collection): work} if work.pairs else {}
        if not works:
            return [f"{model.label}: nothing is left to rerank"]
        costs = estimate(reranker, list(works.values()))
        lines = [f"{model.label}, {name}: {cost}" for name, cost in zip(works, costs, strict=True)]
        return [*lines, f"{model.label}, all: {total(costs)}"] if len(works) > 1 else lines

    def _measured(self, label: str, reranker: Reranker | None) -> System:
        system = System(label)
        for job in self.jobs:
            folder = self.folders.figures(label, job.collection)
            summary = self._evaluation(reranker, job, job.collection).write(folder, show_progress=True)
            system.add(job, folder, summary)
        return system

    def _fused(self, system: System, reranker: Reranker) -> System:
        """The model's order and the first stage's as one, weighted as is best on another split."""
        fused = System(f"{system.label}+{FIRST_STAGE}")
        for job in (job for job in self.jobs if job.tuning is not None):
            assert job.tuning is not None
            tuning = self._evaluation(reranker, job, job.tuning)
            folder = self.folders.figures(system.label, job.tuning)
            tuning.write(folder, show_progress=True)
            weights = tune(job.tuning.qrels, tuning.run, _ranked(folder, tuning.run))
            evaluation = self._evaluation(reranker, job, job.collection)
            ranked = fuse(evaluation.run, _ranked(system.folders[job.slug], evaluation.run), weights)
            folder = self.folders.figures(fused.label, job.collection)
            about = {"fusion": {"tuned_on": job.tuning.split, **weights._asdict()}}
            fused.add(job, folder, evaluation.write_ranked(folder, ranked, tag="fused", about=about))
        return fused

    def _evaluation(self, reranker: Reranker | None, job: Job, collection: Collection) -> Evaluation:
        """Of a job's collection, or of the split that its fusion is tuned on."""
        run = self._candidates(job, collection)
        stage, settings = job.first_stage, self.settings
        instruction = job.instruction if reranker else None
        told = stage.protocol(collection)
        return Evaluation(reranker, collection, run, told, stage.depth, settings.metrics, instruction, self.kept)

    def _candidates(self, job: Job, collection: Collection) -> Run:
        return kept_candidates(collection, job.first_stage, self.folders.candidates(collection), show_progress=True)


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
