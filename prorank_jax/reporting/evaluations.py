"""The evaluations in a run folder: which were made on the same candidates of the same queries, and their figures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prorank_jax.data.lines import read_lines
from prorank_jax.data.runs import Run, read_run
from prorank_jax.errors import InputError
from prorank_jax.evaluate import METRICS_FILE, PER_QUERY_FILE, RUN_FILE, Summary
from prorank_jax.evaluation.folder import read_json

FOLDER = "evaluation"
FIRST_STAGE = "first stage"
_CANDIDATES = "first_stage.trec"
_TITLES = {"base": "base model", "warmup": "after prompt warmup", "score": "after score learning"}
_ORDER = tuple(_TITLES)


class System(NamedTuple):
    """One model's run of a collection, and the figures of its queries: metric -> float64 [queries]."""

    label: str
    folder: Path
    summary: Summary
    values: dict[str, np.ndarray]
    before: dict[str, np.ndarray]
    """Those of the first stage."""


@dataclass(frozen=True)
class Evaluated:
    """A collection with the models that reranked the same candidates, the final model last."""

    collection: str
    split: str
    queries: tuple[str, ...]
    systems: tuple[System, ...]
    first_stage: Path | None
    """The run of the candidates, where it was kept."""

    @property
    def name(self) -> str:
        return f"{self.collection}/{self.split}"

    @property
    def metrics(self) -> list[str]:
        return list(self.systems[-1].values)

    def columns(self, metric: str) -> dict[str, np.ndarray]:
        """The figures of the queries, float64 [queries], by model; the first stage's come first."""
        return {FIRST_STAGE: self.systems[-1].before[metric]} | {one.label: one.values[metric] for one in self.systems}

    def candidates(self) -> Run | None:
        return None if self.first_stage is None else read_run(self.first_stage)

    def ranked(self) -> Run:
        """The final model's order."""
        return read_run(self.systems[-1].folder / RUN_FILE)


def find_evaluations(run: Path) -> list[Evaluated]:
    """All finished evaluations under `evaluation/` of a run folder, by collection.

    Raises:
      InputError: a file of one of them is damaged.
    """
    families: dict[tuple[Any, ...], list[tuple[Path, System]]] = {}
    for place in sorted((run / FOLDER).rglob(METRICS_FILE)):
        summary = read_json(place)
        if not isinstance(summary, dict) or not (place.parent / PER_QUERY_FILE).is_file():
            continue
        try:
            protocol = summary["protocol"]
            alike = (protocol["collection"], protocol["split"], protocol["first_stage"], protocol["depth"])
            figures = (tuple(summary["metrics"]), tuple(summary["first_stage"].values()))
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{place}: not what prorank evaluate writes; evaluate again") from None
        queries, values, before = _figures(place.parent / PER_QUERY_FILE, tuple(summary["metrics"]))
        system = System(_label(place.parent, run / FOLDER, protocol), place.parent, summary, values, before)
        families.setdefault((*alike, *figures, queries), []).append((place.parent, system))
    found = []
    for (collection, split, *_, queries), members in families.items():
        reranked = [system for _, system in members if system.summary["protocol"].get("reranked", True)]
        if reranked:
            systems = _distinct(sorted(reranked, key=_rank), run / FOLDER)
            found.append(Evaluated(collection, split, queries, systems, _candidates(members)))
    return found


def _label(folder: Path, root: Path, protocol: dict[str, Any]) -> str:
    """What an evaluation's folder says of its model."""
    parts = folder.relative_to(root).parts
    own = f"{str(protocol['collection']).replace('/', '-')}-{protocol['split']}"
    names = [part for part in parts if part != own]
    return _TITLES.get(names[-1], names[-1]) if names else "this model"


def _rank(system: System) -> tuple[int, str]:
    """The order of a table: fusions, other models, and last the stages as they follow one another."""
    order = [_TITLES[name] for name in _ORDER]
    fused = "fusion" in system.summary["protocol"]
    return (order.index(system.label) if system.label in order else -2 if fused else -1, system.label)


def _distinct(systems: Sequence[System], root: Path) -> tuple[System, ...]:
    """The same, where two have one label by their folders."""
    labels = [system.label for system in systems]
    return tuple(
        system._replace(label=system.folder.relative_to(root).as_posix())
        if labels.count(system.label) > 1 or system.label == FIRST_STAGE
        else system
        for system in systems
    )


def _candidates(members: Sequence[tuple[Path, System]]) -> Path | None:
    """Where the run of the first stage lies: in the folder, beside it in a suite, or measured without a model."""

    def places() -> Iterator[Path]:
        for folder, system in members:
            yield folder / _CANDIDATES
            yield folder.parent.parent / "first-stage" / folder.name / _CANDIDATES
            if not system.summary["protocol"].get("reranked", True):
                yield folder / RUN_FILE

    return next((path for path in places() if path.is_file()), None)


def _figures(
    path: Path, metrics: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The queries of a `per_query.tsv`, and their figures after and before reranking."""
    try:
        header, *rows = [line.split("\t") for _, line in read_lines(path)]
        columns = {name: [row[place] for row in rows] for place, name in enumerate(header)}
        after, before = (
            {metric: np.array(columns[kind + metric], np.float64) for metric in metrics}
            for kind in ("", "first_stage/")
        )
        queries = tuple(columns["query_id"])
    except (ValueError, KeyError, IndexError):
        raise InputError(f"{path}: not what prorank evaluate writes; evaluate again") from None
    return queries, after, before
