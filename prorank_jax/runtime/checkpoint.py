"""Checkpoints of a training state: `<folder>/<step>/`, written by Orbax and sealed with checksums.

A save is synchronous: when it returns, the step can be restored. It is atomic: Orbax writes into
`<step>.orbax-checkpoint-tmp` and renames it, and a step counts once its checksums are there, so that a process killed
at any moment leaves the steps before it whole. Arrays come back bit for bit, onto whatever mesh the caller describes.
No byte is trusted that is not the one that was written. Every process of a multi-host run makes the same calls on one
shared folder.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import orbax.checkpoint as ocp

from prorank_jax.checksums import CHECKSUMS, damage, seal
from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json
from prorank_jax.progress import tell
from prorank_jax.runtime.mesh import largest, wait_for_all
from prorank_jax.runtime.room import Room
from prorank_jax.storage import Place, absolute, exists, folders, free_bytes, read_bytes, remove, rename, write_text

State = Any
"""A pytree of arrays: nested dicts, tuples, optax states."""
MEASURE = "measure.json"
ASIDE = ".damaged"
"""Behind the name of a step that was set aside."""


class Checkpoints:
    """The checkpoints of one stage: the newest `keep` of them, and the best of those that were measured.

    Args:
      folder: is made by the first save.
      room: who waits where the disk is full; default: nobody.
    """

    def __init__(self, folder: Place, keep: int, room: Room | None = None):
        self._folder, self._keep, self._room = absolute(folder), keep, room
        self._whole: set[int] = set()
        """Steps whose bytes this process has seen to be right."""

    def steps(self) -> list[int]:
        """The finished steps, ascending."""
        return sorted(step for step in self._named() if exists(self._folder / str(step) / CHECKSUMS))

    def latest(self) -> int | None:
        """The newest finished step; None before the first."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the highest measure, the earlier of two equal ones; None where none was measured."""
        measures = {step: self.measure(step) for step in self.steps()}
        found = [(value, -step) for step, value in measures.items() if value is not None]
        return -max(found)[1] if found else None

    def measure(self, step: int) -> float | None:
        """What was measured of a finished step; None where nothing was.

        Raises:
          InputError: the step is damaged.
        """
        written = read_bytes(self._folder / str(step) / MEASURE)
        if written is None:
            return None
        try:
            return float(parse_json(written)["measure"])
        except (ValueError, KeyError, TypeError):
            self._check(step)
            raise

    def damage(self, step: int) -> str | None:
        """What is wrong with a step, in a few words; None where its bytes are those that were written."""
        return damage(self._folder / str(step))

    def mend(self) -> int | None:
        """The step to go on from: the newest whose bytes are those that were written; None before the first.

        Newer ones are set aside as `<step>.damaged`, and told; they go once the run is past them again.

        Raises:
          InputError: no step is whole, or the best one is not: that cannot be made up for.
        """
        if jax.process_index() == 0:
            self._set_damaged_aside()
        wait_for_all("mended")
        if (best := self.best()) is not None:
            self._check(best)
        return self.latest()

    def save(self, step: int, state: State, measure: float | None = None) -> None:
        """Writes `state` and deletes all but the newest `keep` steps and the best.

        Args:
          measure: what was measured of this state, the more the better.

        Raises:
          OSError: there is no room for it, and nobody waits.
          ValueError: the folder already holds this step or a later one.
        """
        latest = self.latest()
        if latest is not None and step <= latest:
            raise ValueError(f"{self._folder}: step {step} is not after the saved step {latest}; save steps in order")

        def write() -> None:
            self._write(step, state, measure)

        if self._room is None:
            write()
        else:
            self._room.keep_trying(self._folder / str(step), write)
        self._whole.add(step)
        if jax.process_index() == 0:
            self._forget(step)
        wait_for_all("saved")

    def restore(self, step: int | None, abstract_state: State) -> State:
        """The state saved at `step` (None: the newest), shaped and placed like `abstract_state`.

        Args:
          abstract_state: the tree of `jax.ShapeDtypeStruct` that was saved; an array goes to the sharding of
            its struct, or to the default device where that has none.

        Raises:
          InputError: no such step, it is damaged, or it holds other arrays than `abstract_state`: names what
            differs.
        """
        step = self._finished(step)
        path = self._folder / str(step)
        with self._damage_named(step), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            _check_arrays(path, _flatten(_saved(reader, path)), _flatten(abstract_state))
            return reader.restore(path, args=ocp.args.StandardRestore(_placed(abstract_state)))

    def restore_params(self, step: int | None, abstract_params: State) -> State:
        """The entry `params` of the state saved at `step`, and nothing else of it; as `restore` otherwise."""
        step = self._finished(step)
        path = self._folder / str(step)
        with self._damage_named(step), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            saved = _saved(reader, path)
            if "params" not in saved:
                raise ValueError("it holds no params")
            _check_arrays(path, _flatten(saved["params"]), _flatten(abstract_params))
            wanted = {"params": _placed(abstract_params)}
            arguments = ocp.args.PyTreeRestore(
                item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            )
            restored: State = reader.restore(path, args=arguments)
            return restored["params"]

    def _named(self) -> list[int]:
        """The steps that have a folder, finished or not."""
        return [int(name) for name in folders(self._folder) if name.isascii() and name.isdigit()]

    def _write(self, step: int, state: State, measure: float | None) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / str(step)
        # Looked for beforehand: what fails in the middle prints traces of its threads. Orbax packs, so this is a bound.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if largest(int(free_bytes(self._folder) < needed)):
            raise OSError(errno.ENOSPC, f"No space left on device, {needed / 1e6:,.1f} MB needed")
        try:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
                writer.save(path, args=ocp.args.StandardSave(state), force=True)
            if jax.process_index() == 0:
                if measure is not None:
                    write_text(path / MEASURE, json.dumps({"measure": measure}) + "\n")
                seal(path)
        except Exception:
            # What could not be finished must not take the room that is missing.
            for name in folders(self._folder):
                if name == str(step) or name.startswith(f"{step}."):
                    remove(self._folder / name, first=CHECKSUMS)
            raise

    def _forget(self, newest: int) -> None:
        steps = self.steps()
        kept = {*steps[-self._keep :], self.best()}
        for step in self._named():
            if step < newest and step not in kept:
                remove(self._folder / str(step), first=CHECKSUMS)
        for name in folders(self._folder):
            if name.endswith(ASIDE) and int(name.removesuffix(ASIDE)) <= newest:
                remove(self._folder / name, first=CHECKSUMS)

    def _set_damaged_aside(self) -> None:
        named = sorted(self._named(), reverse=True)
        wrong = {}
        for step in named:
            if (what := self.damage(step)) is None:
                self._whole.add(step)
                break
            wrong[step] = what
        else:
            # A run that was killed before the checksums of its first step leaves that one alone without them.
            if len(wrong) > 1 or any(exists(self._folder / str(step) / CHECKSUMS) for step in wrong):
                raise InputError(
                    f"{self._folder}: no step is whole ({named[0]}: {wrong[named[0]]}); put back a copy of one, or "
                    "delete the folder to begin the stage anew"
                )
        for step, what in wrong.items():
            rename(self._folder / str(step), f"{step}{ASIDE}", first=CHECKSUMS)
            before = max((other for other in named if other < step), default=None)
            goes_on = "the stage begins anew" if before is None else f"going on from step {before}"
            tell(f"prorank: {self._folder}/{step}: damaged ({what}); set aside as {step}{ASIDE}; {goes_on}")

    def _finished(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise InputError(f"{self._folder}: no finished checkpoint here; give the folder of a run that saved one")
        if step is None:
            step = steps[-1]
        if step not in steps:
            raise InputError(f"{self._folder}: no step {step}; the saved steps are {', '.join(map(str, steps))}")
        # One process looks at the bytes for all.
        if jax.process_index() == 0:
            self._check(step)
        return step

    def _check(self, step: int) -> None:
        if step in self._whole:
            return
        if (what := self.damage(step)) is not None:
            raise InputError(
                f"{self._folder}/{step}: damaged ({what}); put back a copy of it, or delete that folder to do without"
            )
        self._whole.add(step)

    @contextmanager
    def _damage_named(self, step: int) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except ValueError as error:
            reason = str(error).splitlines()[0][:200]
            raise InputError(
                f"{self._folder}/{step}: cannot be restored ({reason}); delete that folder to go on from the step "
                "before it"
            ) from error


def _saved(reader: ocp.Checkpointer, path: Place) -> State:
    saved = reader.metadata(path)
    saved = getattr(saved, "item_metadata", saved)
    if saved is None:
        raise ValueError("it lists no arrays")
    return saved


def _placed(abstract_state: State) -> State:
    home = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or home), abstract_state
    )


def _flatten(tree: Any) -> dict[str, str]:
    """`path -> float32[3,4]` of every array; saved trees hold lists for tuples and dicts for named tuples."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in leaves
    }


def _check_arrays(place: Place, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    # Orbax itself would cast another dtype without a word.
    problems = [
        f"{name} is {saved.get(name, 'not there')}, expected {wanted.get(name, 'not to be there')}"
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise InputError(
            f"{os.fspath(place)}: saved from another model or optimizer: {'; '.join(problems[:3])}{more}; "
            f"restore it with the configuration that made it"
        )
