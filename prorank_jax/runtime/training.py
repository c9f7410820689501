"""What the loops of all stages share: the state and where it begins, an update, and a watch over the metrics."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from prorank_jax.config import ScoreConfig, WarmupStageConfig
from prorank_jax.errors import InputError
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.runtime.mesh import ROWS, abstract, keep_place, mean_gradient, mean_over_devices, on_devices, specs

Metrics = dict[str, Array]
Numbers = dict[str, float]
"""Metrics on the host."""


class TrainState(NamedTuple):
    """What a checkpoint holds: the parameters that learn (a network's, or its adapters) and the optimizer's state."""

    params: Any
    optimizer: optax.OptState


def state_layout(optimizer: optax.GradientTransformation, mesh: Mesh, params: Any) -> TrainState:
    """Shapes, dtypes and places of the state that begins with parameters of these shapes."""
    return TrainState(abstract(mesh, params), abstract(mesh, jax.eval_shape(optimizer.init, params)))


def open_state(
    checkpoints: Checkpoints, optimizer: optax.GradientTransformation, mesh: Mesh, params: Any, *, keep: bool
) -> tuple[TrainState, int]:
    """The state to go on from, in its place on the mesh, and the step it is of.

    That is the newest whole checkpoint, or before the first one `params` and 0.

    Args:
      keep: whether `params` are still read afterwards; else their memory becomes the state's.
    """
    layout = state_layout(optimizer, mesh, params)
    done = checkpoints.mend()
    if done is not None:
        if not keep:
            jax.tree.map(lambda leaf: leaf.delete(), params)
        return checkpoints.restore(done, layout), done

    def init(params: Any) -> TrainState:
        return TrainState(params, optimizer.init(params))

    places = jax.tree.map(lambda leaf: leaf.sharding, layout)
    return jax.jit(init, out_shardings=places, donate_argnums=() if keep else 0)(params), 0


def descend(optimizer: optax.GradientTransformation, state: TrainState, gradient: Any) -> tuple[TrainState, Array]:
    """The state after one update, and the global norm of the gradient before it is clipped."""
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    return TrainState(optax.apply_updates(state.params, updates), optimizer_state), optax.tree.norm(gradient)


def make_gradient_step(
    loss: Callable[[Any, Any, Any], tuple[Array, Metrics]],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    parts: int = 1,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, Metrics]]:
    """The compiled step `(state, base, batch) -> (state, metrics)` of a loss; the buffers of the state are used again.

    `loss(learnt, base, batch)` is a mean over the rows of the batch, with metrics that are such means too, so that the
    rows of a device may be computed in equal parts, one after the other.
    """

    def gradient_of(learnt: Any, base: Any, batch: Any) -> tuple[Any, Metrics]:
        gradient: tuple[Any, Metrics] = jax.grad(loss, has_aux=True)(learnt, base, batch)
        return gradient

    def mean_over_parts(learnt: Any, base: Any, batch: Any) -> tuple[Any, Metrics]:
        if parts == 1:
            return gradient_of(learnt, base, batch)
        split = jax.tree.map(lambda rows: rows.reshape(parts, len(rows) // parts, *rows.shape[1:]), batch)
        first = jax.tree.map(lambda rows: rows[0], split)
        start = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient_of, learnt, base, first))

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient_of(learnt, base, part)), None

        total, _ = lax.scan(add, start, split)
        return jax.tree.map(lambda leaf: leaf / parts, total)

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, base: Any, batch: Any) -> tuple[TrainState, Metrics]:
        places = specs(mesh, state.params)

        def on_device(learnt: Any, base: Any, batch: Any) -> tuple[Any, Metrics]:
            gradient, metrics = mean_over_parts(learnt, base, batch)
            return mean_gradient(mesh, gradient, places), mean_over_devices(metrics)

        mapped = on_devices(mesh, on_device, (places, specs(mesh, base), ROWS), (places, P()))
        gradient, metrics = mapped(state.params, base, batch)
        state, norm = descend(optimizer, state, gradient)
        return keep_place(mesh, state), metrics | {"grad_norm": norm}

    return step


class Watch:
    """Stops a run at the first step with a metric that is not finite.

    It reads the metrics of a step while the next one is computed, so that the device need not wait; `catch_up` reads
    those that are left, before anything of a step is kept. Nobody else reads them: each is fetched once.
    """

    def __init__(self, stage: str, checkpoints: Checkpoints):
        self._stage, self._checkpoints = stage, checkpoints
        self._unseen: tuple[int, Metrics] | None = None
        self._last: Numbers = {}

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that was just started, and looks at those of the step before it.

        Raises:
          InputError: one of these is not finite; names it and the step, and the last checkpoint.
        """
        self.catch_up()
        self._unseen = step, metrics

    def catch_up(self) -> Numbers:
        """The metrics of the last step, read and looked at if they were not yet; raises as `add` does."""
        if self._unseen is None:
            return self._last
        (step, metrics), self._unseen = self._unseen, None
        self._last = values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        # A reward that is not finite spoils the loss, and the loss the gradient: the cause is told, not its effects.
        causes = [*(name for name in values if name.startswith("rewards/")), "loss", "grad_norm"]
        for name in [name for name in causes if name in values] + [name for name in values if name not in causes]:
            if not math.isfinite(values[name]):
                remedy = (
                    "mend that reward"
                    if name.startswith("rewards/")
                    else f"lower {self._stage}.optimizer.learning_rate or max_grad_norm, or compute in float32"
                )
                saved = self._checkpoints.latest()
                kept = "no checkpoint was saved yet" if saved is None else f"step {saved} is the last checkpoint"
                raise InputError(f"{self._stage}: {name} is {values[name]} at step {step}; {kept}; {remedy}")
        return values


def ended(config: WarmupStageConfig | ScoreConfig, number: int, checkpoints: Checkpoints) -> bool:
    """Whether a stage is over after a step: it is the last, or patience with measurements that are no better is."""
    best = checkpoints.best()
    if number == config.steps or config.dev is None or config.dev.patience is None or best is None:
        return number == config.steps
    return number - best >= config.dev.patience * config.dev.every
