"""Checkpoints of a training state: `<folder>/<step>/`, written by Orbax.

A save is synchronous: when it returns, the step can be restored. It is atomic: Orbax writes into
`<step>.orbax-checkpoint-tmp` and renames it, so a process killed at any moment leaves the steps before it
whole, and the leftover folder is no step. Arrays come back bit for bit, onto whatever mesh the caller
describes. Every process of a multi-host run makes the same calls on one shared folder.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from prorank_jax.errors import InputError
from prorank_jax.storage import Place, absolute

State = Any
"""A pytree of arrays: nested dicts, tuples, optax states."""
_ITEM = "default"
"""The folder in a step's folder where Orbax puts the one item that is saved."""

# Orbax warns of what is ordinary here: leftovers of a killed run, hosts without a part of the data.
logging.set_verbosity(logging.ERROR)


class Checkpoints:
    """The checkpoints of one stage: the newest `keep` of them, and the best of those that were measured."""

    def __init__(self, folder: Place, keep: int):
        """Reads what lies in `folder`; the folder is made by the first save."""
        self._folder = absolute(folder)
        # Deleting what killed runs left is Orbax's at the next save of that step: doing it here could delete
        # what another process is just writing.
        self._manager = ocp.CheckpointManager(
            self._folder,
            # Without it a manager that has not saved yet cannot tell what a step holds.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(
                    [LatestN(keep), BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)]
                ),
                best_fn=_rank,
                enable_async_checkpointing=False,
                create=False,
            ),
        )

    def steps(self) -> list[int]:
        """The finished steps, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """The newest finished step; None before the first."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the highest measure, the earlier of two equal ones; None where none was measured."""
        measures = {step: self.measure(step) for step in self.steps()}
        found = [(value, -step) for step, value in measures.items() if value is not None]
        return -max(found)[1] if found else None

    def measure(self, step: int) -> float | None:
        """What was measured of a finished step; None where nothing was."""
        kept = self._manager.metrics(step)
        return None if kept is None else float(kept["measure"])

    def save(self, step: int, state: State, measure: float | None = None) -> None:
        """Writes `state` and deletes all but the newest `keep` steps and the best.

        Args:
          measure: what was measured of this state, the more the better.

        Raises:
          ValueError: the folder already holds this step or a later one.
        """
        latest = self.latest()
        if latest is not None and step <= latest:
            raise ValueError(f"{self._folder}: step {step} is not after the saved step {latest}; save steps in order")
        self._folder.mkdir(parents=True, exist_ok=True)
        metrics = None if measure is None else {"measure": measure, "step": step}
        self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

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
        with self._damage_named(step):
            _check(f"{self._folder}/{step}", _flatten(self._saved(step)), _flatten(abstract_state))
            return self._manager.restore(step, args=ocp.args.StandardRestore(_placed(abstract_state)))

    def restore_params(self, step: int | None, abstract_params: State) -> State:
        """The entry `params` of the state saved at `step`, and nothing else of it; as `restore` otherwise."""
        step = self._finished(step)
        with self._damage_named(step):
            saved = self._saved(step)
            if "params" not in saved:
                raise ValueError("it holds no params")
            _check(f"{self._folder}/{step}", _flatten(saved["params"]), _flatten(abstract_params))
            wanted = {"params": _placed(abstract_params)}
            arguments = ocp.args.PyTreeRestore(
                item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
            )
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                restored: State = reader.restore(self._folder / str(step) / _ITEM, args=arguments)
            return restored["params"]

    def _finished(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise InputError(f"{self._folder}: no finished checkpoint here; give the folder of a run that saved one")
        if step is None:
            return steps[-1]
        if step not in steps:
            raise InputError(f"{self._folder}: no step {step}; the saved steps are {', '.join(map(str, steps))}")
        return step

    def _saved(self, step: int) -> State:
        saved = self._manager.item_metadata(step)
        if saved is None:
            raise ValueError("it lists no arrays")
        return saved

    @contextmanager
    def _damage_named(self, step: int) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except ValueError as error:
            reason = str(error).splitlines()[0][:200]
            remedy = "if its files are damaged, delete that folder to go on from the step before it"
            raise InputError(f"{self._folder}/{step}: cannot be restored ({reason}); {remedy}") from error


def _rank(metrics: Mapping[str, float]) -> tuple[float, float]:
    return metrics["measure"], -metrics["step"]


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


def _check(place: str, saved: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    # Orbax itself would cast another dtype without a word.
    problems = [
        f"{name} is {saved.get(name, 'not there')}, expected {wanted.get(name, 'not to be there')}"
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise InputError(
            f"{place}: saved from another model or optimizer: {'; '.join(problems[:3])}{more}; "
            f"restore it with the configuration that made it"
        )
