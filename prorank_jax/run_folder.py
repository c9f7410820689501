"""The run folder: what lies where in it, whose it is, and which of its checkpoints a path names.

config.yaml       the resolved configuration
run.json          when and on what the run began
lock              held by the run that is in the folder
warmup/, score/   checkpoints/<step>/, metrics.jsonl, scores.jsonl, TensorBoard events
export/           the model
evaluation/       run.trec and metrics.json of each collection
report.html       what `prorank report` writes
"""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax

from prorank_jax import __version__
from prorank_jax.atomic import writing
from prorank_jax.config import RunConfig, WarmupStageConfig
from prorank_jax.config_file import differences, dump_config, load_config
from prorank_jax.errors import InputError
from prorank_jax.model.weights import refuse_adapter
from prorank_jax.run_lock import check_free, locked
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.storage import Place, absolute, exists, write_text

CONFIG_FILE = "config.yaml"
BEGAN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
STAGES = ("warmup", "score")
_ELSEWHERE = "give another --workdir"


class SavedStep(NamedTuple):
    """How far a model was trained: steps of a stage, after the stages before it."""

    stage: str
    step: int


def check_run_folder(config: RunConfig, workdir: Place) -> None:
    """Refuses a run folder in which no run can begin, before anything is computed for it; leaves no trace.

    Another mesh or number of workers is no other configuration: a run may go on on another machine.

    Raises:
      InputError: it cannot be written, another run is in it, or it was made with another configuration: the keys that
        differ are named.
    """
    _check_configuration(config, workdir)
    if jax.process_index() == 0:
        with writing(workdir, _ELSEWHERE):
            check_free(workdir)


def _check_configuration(config: RunConfig, workdir: Place) -> None:
    path = workdir / CONFIG_FILE
    if not exists(path):
        return
    made = load_config(path)
    data = config.data.model_copy(update={"workers": made.data.workers})
    if changed := differences(made, config.model_copy(update={"mesh": made.mesh, "data": data})):
        raise InputError(
            f"{workdir}: made with another configuration ({'; '.join(changed)}); "
            "use that configuration to go on, or another --workdir"
        )


@contextmanager
def open_run_folder(config: RunConfig, workdir: Place) -> Iterator[None]:
    """Makes the run folder, keeps the configuration in it, and holds its lock in the block.

    Only once all input is known to be good: a folder that a refused run had claimed would refuse the mended one.

    Raises:
      InputError: it cannot be written, another run is in it, or it was made with another configuration.
    """
    with ExitStack() as held:
        if jax.process_index() == 0:
            with writing(workdir, _ELSEWHERE):
                workdir.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(workdir))
                _check_configuration(config, workdir)
                write_text(workdir / CONFIG_FILE, dump_config(config))
                if not exists(workdir / BEGAN_FILE):
                    write_text(workdir / BEGAN_FILE, json.dumps(_began(), indent=2) + "\n")
        yield


def _began() -> dict[str, Any]:
    """When the run begins, and with which software and hardware; a run that goes on elsewhere keeps what is here."""
    devices = jax.devices()
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "prorank_jax": __version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
    }


def checkpoints(workdir: Place, stage: str) -> Checkpoints:
    """The checkpoints of a stage, for reading."""
    return Checkpoints(workdir / stage / CHECKPOINTS, keep=1)


def warmed_up(workdir: Place, config: WarmupStageConfig) -> SavedStep:
    """The step that a finished warmup has as its result: the best one where it was measured, else the last."""
    best = checkpoints(workdir, "warmup").best() if config.dev else None
    return SavedStep("warmup", best or config.steps)


def find_checkpoint(path: Place) -> tuple[Place, SavedStep]:
    """The run folder and the step that a path names: RUN, RUN/score or RUN/score/checkpoints/120.

    A path without a step means the best one where the stage was measured, else the newest; a run folder means the last
    of its stages that has one.

    Raises:
      InputError: no run folder there (an adapter of another tool's training is named), or no such finished step.
    """
    lying = absolute(path)
    above = (lying, *lying.parents)[:4]
    run = next((folder for folder in above if exists(folder / CONFIG_FILE)), None)
    named = () if run is None else lying.relative_to(run).parts
    shape_is_known = len(named) <= 3 and named[:1] in ((), *((stage,) for stage in STAGES))
    if run is None or not shape_is_known or named[1:2] not in ((), (CHECKPOINTS,)):
        refuse_adapter(Path(os.fspath(lying)))
        raise InputError(
            f"{path}: not a checkpoint of a run; give a run folder (with {CONFIG_FILE}), "
            f"or RUN/score/{CHECKPOINTS}/STEP"
        )
    saved = {stage: checkpoints(run, stage).steps() for stage in (named[:1] or reversed(STAGES))}
    stage = next((stage for stage, steps in saved.items() if steps), None)
    if stage is None:
        raise InputError(f"{path}: no finished checkpoint here; train first: prorank train CONFIG --workdir {path}")
    step = named[2] if len(named) == 3 else str(checkpoints(run, stage).best() or saved[stage][-1])
    if step not in map(str, saved[stage]):
        raise InputError(f"{path}: no step {step}; the saved steps are {', '.join(map(str, saved[stage]))}")
    return run, SavedStep(stage, int(step))
