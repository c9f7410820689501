"""Whether a run folder is sound, for `prorank doctor RUN`: all that is in it is read, and nothing is changed.

What a run mends by itself, or what may be deleted, is ok with a remedy.
"""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np

from prorank_jax.card import read_record
from prorank_jax.checksums import CHECKSUMS
from prorank_jax.config import GrpoConfig, RunConfig, StageConfig
from prorank_jax.config_file import load_config
from prorank_jax.data.runs import read_run
from prorank_jax.doctor import Check
from prorank_jax.errors import InputError
from prorank_jax.evaluate import METRICS_FILE, RUN_FILE
from prorank_jax.evaluation.folder import read_json
from prorank_jax.export import saved_parameters
from prorank_jax.json_text import parse_json
from prorank_jax.model.hf import Pretrained, load_pretrained
from prorank_jax.run_folder import BEGAN_FILE, CHECKPOINTS, CONFIG_FILE, STAGES, SavedStep, checkpoints
from prorank_jax.run_lock import holder
from prorank_jax.runtime.checkpoint import ASIDE
from prorank_jax.runtime.metrics import FILE_NAME, read_metrics
from prorank_jax.scoring.record import SCORES, read_scores
from prorank_jax.storage import Place, exists, fetched, folders, read_bytes
from prorank_jax.warmup.stage import COMPLETIONS

_DELETE = "may be deleted"


def examine(run: Place) -> list[Check]:
    """All that is to be said of a run folder, in the order in which it was written.

    Raises:
      InputError: it is no run folder.
    """
    if not exists(run / CONFIG_FILE):
        raise InputError(f"{run}: no run folder; give one with {CONFIG_FILE}, as prorank train makes it")
    try:
        config = load_config(run / CONFIG_FILE)
    except InputError as error:
        return [Check(CONFIG_FILE, False, str(error), "put back the configuration that the run was started with")]
    stages = {name: stage for name in STAGES if (stage := getattr(config, name)) is not None}
    checks = [Check(CONFIG_FILE, True, ", ".join(f"{name} of {stage.steps} steps" for name, stage in stages.items()))]
    if (by := holder(run)) is not None:
        checks.append(Check("lock", True, f"held by {by}", "what it is just writing looks unfinished here"))
    if exists(run / BEGAN_FILE):
        checks.append(_began(run / BEGAN_FILE))
    for name, stage in stages.items():
        checks += _stage(run, name, stage)
    return [*checks, *_export(run, config), *_evaluations(run)]


def _stage(run: Place, name: str, config: StageConfig) -> Iterator[Check]:
    folder = run / name
    saved, steps = checkpoints(run, name), checkpoints(run, name).steps()
    wrong = {step: what for step in steps if (what := saved.damage(step)) is not None}
    whole = [step for step in steps if step not in wrong]
    for step, what in wrong.items():
        mends = step > max(whole, default=step)
        remedy = f"the run sets it aside and goes on from step {whole[-1]}" if mends else "put back a copy of it"
        yield Check(f"{name}/{CHECKPOINTS}/{step}", False, f"damaged: {what}", remedy)
    best = None if wrong else saved.best()
    if whole:
        told = f"{', '.join(map(str, whole))} of {config.steps}, whole" + (f"; the best is {best}" if best else "")
        remedy = "" if whole[-1] == config.steps or best else "start the same command again to go on"
        yield Check(f"{name} steps", True, told, remedy)
    elif not wrong:
        yield Check(f"{name} steps", True, "none", "start the same command again to go on")
    for left in folders(folder / CHECKPOINTS):
        if left.endswith(ASIDE) or ".orbax-checkpoint-tmp" in left:
            yield Check(f"{name}/{CHECKPOINTS}/{left}", True, "left by a run that was cut short or set aside", _DELETE)
        elif left.isdigit() and not exists(folder / CHECKPOINTS / left / CHECKSUMS):
            yield Check(f"{name}/{CHECKPOINTS}/{left}", True, "not finished", "the run makes it again")
    names = [FILE_NAME]
    if isinstance(config, GrpoConfig) and config.show_completions_every:
        names.append(COMPLETIONS)
    for file in names:
        yield _rows(folder / file, f"{name}/{file}", max(whole, default=0), config if file == FILE_NAME else None)
    if exists(folder / SCORES):
        yield _scores(folder / SCORES, f"{name}/{SCORES}")


def _began(path: Place) -> Check:
    try:
        whole = isinstance(parse_json(read_bytes(path) or b""), dict)
    except ValueError:
        whole = False
    told = "when and on what the run began" if whole else "is not a JSON object"
    return Check(BEGAN_FILE, whole, told, "" if whole else f"{_DELETE}; prorank report then leaves out what it says")


def _scores(path: Place, name: str) -> Check:
    rows = read_scores(path)
    told = f"{len(rows)} rows" if rows else "is not what a stage writes"
    return Check(name, bool(rows), told, "" if rows else f"{_DELETE}; prorank report then has no scores of this stage")


def _rows(path: Place, name: str, reached: int, config: StageConfig | None) -> Check:
    """A file of rows; with a configuration, one that must have a row every so often."""
    again = "put back a copy of it; the rows up to the last checkpoint are not written again"
    try:
        numbers = [row["step"] for row in read_metrics(path)] if exists(path) else []
    except InputError as error:
        return Check(name, False, str(error), again)
    if any(after < before for before, after in pairwise(numbers)):
        return Check(name, False, "its steps do not ascend", again)
    if config is not None:
        due = range(config.log_every, reached + 1, config.log_every)
        if missing := sorted(set(due) - set(numbers)):
            return Check(name, False, f"{len(missing)} rows are missing, the first of step {missing[0]}", again)
    return Check(name, True, f"{len(numbers)} rows" + (f" up to step {numbers[-1]}" if numbers else ""))


def _export(run: Place, config: RunConfig) -> Iterator[Check]:
    folder, name = run / "export", "export"
    if "export.unfinished" in folders(run):
        yield Check("export.unfinished", True, "left by a run that was cut short", _DELETE)
    if not exists(folder / "config.json"):
        yield Check(name, True, "not written yet", "start the same command again, or use prorank export")
        return
    try:
        record = read_record(folder)
        exported = load_pretrained(os.fspath(folder))
    except InputError as error:
        yield Check(name, False, str(error), f"prorank export {run} writes it again")
        return
    if record is None or record.stage is None or record.step is None:
        yield Check(name, False, "does not say what step it is of", f"prorank export {run} writes it again")
        return
    saved = SavedStep(record.stage, record.step)
    told = f"step {saved.step} of {saved.stage}"
    if saved.step not in checkpoints(run, saved.stage).steps():
        yield Check(name, True, f"{told}, whose checkpoint is not kept: its weights are readable and finite")
        return
    try:
        same = _equal(exported, saved_parameters(run, config, saved, exported.config))
    except InputError as error:
        yield Check(name, True, told, f"it cannot be compared with it ({error})")
        return
    remedy = "" if same else f"prorank export {run} writes it again"
    yield Check(name, same, f"{told}, bit for bit" if same else f"other weights than {told}", remedy)


def _equal(exported: Pretrained, params: object) -> bool:
    leaves = zip(jax.tree.leaves(exported.params), jax.tree.leaves(params), strict=True)
    return all(np.array_equal(np.asarray(ours), np.asarray(theirs)) for ours, theirs in leaves)


def _evaluations(run: Place) -> Iterator[Check]:
    for collection in folders(run / "evaluation"):
        folder, name = run / "evaluation" / collection, f"evaluation/{collection}"
        try:
            here = Path(fetched(folder))
            queries = len(read_run(here / RUN_FILE)) if (here / RUN_FILE).is_file() else None
        except InputError as error:
            yield Check(name, False, str(error), "delete the folder and evaluate again")
            continue
        if queries is None or not isinstance(read_json(here / METRICS_FILE), dict):
            yield Check(name, True, "not finished", "the same prorank evaluate goes on with it")
        else:
            yield Check(name, True, f"{queries} queries")
