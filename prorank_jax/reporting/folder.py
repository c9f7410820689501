"""What a run folder holds for a report; of a folder in a bucket, a copy."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prorank_jax.card import Record, read_record
from prorank_jax.config import RunConfig
from prorank_jax.config_file import load_config
from prorank_jax.errors import InputError
from prorank_jax.evaluation.folder import read_json
from prorank_jax.run_folder import BEGAN_FILE, CONFIG_FILE, STAGES
from prorank_jax.runtime.metrics import FILE_NAME, Row, read_metrics
from prorank_jax.scoring.record import SCORES, read_scores
from prorank_jax.storage import Place, exists, fetched
from prorank_jax.warmup.stage import COMPLETIONS

_PATTERNS = (CONFIG_FILE, BEGAN_FILE, "summary.json", "warmup/*.jsonl", "score/*.jsonl", "export/*.json")
_EVALUATIONS = ("evaluation/*.json", "evaluation/*.tsv", "evaluation/*.trec")


@dataclass(frozen=True)
class Stage:
    """The rows that a stage has written; empty where it has not begun, or has no such file."""

    metrics: list[Row]
    scores: list[Row]
    completions: list[Row]


@dataclass(frozen=True)
class RunFiles:
    """A run folder as it was read."""

    name: str
    folder: Path
    config: RunConfig
    began: Mapping[str, Any]
    """What `run.json` says; empty where there is none."""
    record: Record | None
    """Of the exported model."""
    summary: Mapping[str, Any]
    """What `prorank demo` writes beside; empty elsewhere."""
    stages: Mapping[str, Stage]
    """Those of the configuration."""


def read_run(run: Place) -> RunFiles:
    """Reads a run folder.

    Raises:
      InputError: it is none, no stage of it has metrics yet, or a file is damaged.
    """
    if not exists(run / CONFIG_FILE):
        raise InputError(
            f"{run}: no run folder; give one with {CONFIG_FILE}, as prorank train and prorank demo make it"
        )
    config = load_config(run / CONFIG_FILE)
    folder = Path(fetched(run, (*_PATTERNS, *_EVALUATIONS)))
    stages = {name: _stage(folder / name) for name in STAGES if getattr(config, name) is not None}
    if not any(stage.metrics for stage in stages.values()):
        raise InputError(f"{run}: no metrics of a stage here; give the workdir of a run that has trained")
    return RunFiles(
        name=run.absolute().name if isinstance(run, Path) else run.name,
        folder=folder,
        config=config,
        began=_mapping(folder / BEGAN_FILE),
        record=read_record(folder / "export"),
        summary=_mapping(folder / "summary.json"),
        stages=stages,
    )


def _stage(folder: Path) -> Stage:
    return Stage(_rows(folder / FILE_NAME), read_scores(folder / SCORES), _rows(folder / COMPLETIONS))


def _rows(path: Path) -> list[Row]:
    return read_metrics(path) if path.exists() else []


def _mapping(path: Path) -> Mapping[str, Any]:
    found = read_json(path)
    return found if isinstance(found, dict) else {}
