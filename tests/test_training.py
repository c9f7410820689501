"""What the loops of all stages share: where a state begins, an update, and the watch over metrics."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from prorank_jax.config import OptimizerConfig
from prorank_jax.errors import InputError
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.runtime.mesh import largest, shardings, split_rows
from prorank_jax.runtime.optimizer import make_optimizer
from prorank_jax.runtime.training import TrainState, Watch, descend, make_gradient_step, open_state

OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.1), steps=10)


def mesh_of(data: int, fsdp: int) -> Mesh:
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def params_of(seed: int) -> Any:
    keys = jax.random.split(jax.random.key(seed))
    return {
        "embedding": jax.random.normal(keys[0], (6, 16)),
        "layers": {"mlp": {"up": {"kernel": jax.random.normal(keys[1], (2, 16, 4))}, "norm": {"scale": jnp.ones(3)}}},
    }


def structure(tree: Any) -> Any:
    return jax.tree.structure(tree)


def assert_same(left: Any, right: Any) -> None:
    assert structure(left) == structure(right)
    for ours, theirs in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


# Where a state begins.


def test_before_the_first_checkpoint_a_state_is_a_copy(tmp_path: Path) -> None:
    params = params_of(0)
    kept = jax.tree.map(np.array, params)
    state, done = open_state(Checkpoints(tmp_path, 1), OPTIMIZER, mesh_of(1, 1), params, keep=True)
    assert done == 0
    assert isinstance(state, TrainState)
    assert_same(state, TrainState(params, OPTIMIZER.init(params)))

    spent = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + jnp.ones((), leaf.dtype), state), donate_argnums=0)
    after = spent(state)
    # The step has used the buffers of the state again, and the base model, a reference of a KL term, lives on.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert_same(params, kept)
    assert float(jnp.abs(after.params["embedding"] - kept["embedding"]).min()) > 0.5


def test_parameters_that_are_not_kept_become_the_state(tmp_path: Path) -> None:
    mesh = mesh_of(2, 4)
    params = jax.device_put(params_of(0), shardings(mesh, params_of(0)))
    state, _ = open_state(Checkpoints(tmp_path, 1), OPTIMIZER, mesh, params, keep=False)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    assert_same(state.params, params_of(0))


def test_a_fresh_state_lies_where_the_mesh_wants_it(tmp_path: Path) -> None:
    mesh = mesh_of(2, 4)
    state, _ = open_state(Checkpoints(tmp_path, 1), OPTIMIZER, mesh, params_of(0), keep=True)
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(shardings(mesh, state)), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    assert state.params["embedding"].addressable_shards[0].data.shape == (6, 4)
    # Adam's moments lie as their parameters do.
    moments = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.shape == (2, 16, 4)]
    assert [leaf.addressable_shards[0].data.shape for leaf in moments] == [(2, 4, 4)] * 2


def test_the_newest_checkpoint_is_where_a_state_goes_on(tmp_path: Path) -> None:
    mesh, params = mesh_of(2, 4), params_of(0)
    first, _ = open_state(Checkpoints(tmp_path, 2), OPTIMIZER, mesh, params, keep=True)
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(3, first)
    later, norm = descend(OPTIMIZER, first, params)
    checkpoints.save(7, later)

    # What a run begins with is not read any more.
    begun = params_of(1)
    restored, done = open_state(Checkpoints(tmp_path, 2), OPTIMIZER, mesh, begun, keep=False)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(begun))
    assert done == 7
    assert_same(restored, later)
    assert isinstance(restored, TrainState)
    assert structure(restored.optimizer) == structure(OPTIMIZER.init(params))
    assert restored.params["embedding"].addressable_shards[0].data.shape == (6, 4)
    # It goes on as the saved one would have.
    again, again_norm = descend(OPTIMIZER, restored, params)
    expected, _ = descend(OPTIMIZER, later, params)
    assert_same(again, expected)
    assert again_norm == norm


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    state, _ = open_state(Checkpoints(tmp_path, 1), OPTIMIZER, mesh_of(1, 1), params_of(0), keep=True)
    Checkpoints(tmp_path, 1).save(1, state)
    with pytest.raises(InputError, match="saved from another model or optimizer: .*embedding is float32"):
        open_state(Checkpoints(tmp_path, 1), OPTIMIZER, mesh_of(1, 1), {"embedding": jnp.zeros((6, 8))}, keep=True)


# An update.


def test_an_update_and_the_norm_before_the_clip() -> None:
    params, gradient = (
        {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0])},
        {
            "a": jnp.array([3.0, 0.0]),
            "b": jnp.array([4.0]),
        },
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.5, momentum=0.9))
    state = TrainState(params, optimizer.init(params))
    after, norm = descend(optimizer, state, gradient)
    # The norm is that of (3, 0, 4); behind the clip it would be 1.
    assert norm.dtype == jnp.float32 and norm.shape == ()
    assert float(norm) == pytest.approx(5.0)
    # Half of (0.6, 0, 0.8) is taken off; unclipped it would be half of (3, 0, 4).
    np.testing.assert_allclose(after.params["a"], [0.7, 2.0], rtol=1e-6)
    np.testing.assert_allclose(after.params["b"], [2.6], rtol=1e-6)
    assert isinstance(after, TrainState)
    assert structure(after) == structure(state)
    # The second step remembers the first: 0.9 times it, and the clipped gradient again.
    twice, _ = descend(optimizer, after, gradient)
    np.testing.assert_allclose(twice.params["b"], [2.6 - 0.5 * 1.9 * 0.8], rtol=1e-6)


def test_a_state_keeps_its_types_through_updates() -> None:
    state = TrainState(params_of(0), OPTIMIZER.init(params_of(0)))
    after, norm = jax.jit(lambda state, gradient: descend(OPTIMIZER, state, gradient))(state, params_of(1))
    # Else the second step would be compiled anew, and a checkpoint be of another state.
    assert jax.eval_shape(lambda: after) == jax.eval_shape(lambda: state)
    flat = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params_of(1))])
    assert float(norm) == pytest.approx(float(np.sqrt((flat**2).sum())), rel=1e-6)
    # Decay needs the parameters, which the update is given.
    decaying = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5, warmup_fraction=0.0), steps=1)
    shrunk, _ = descend(
        decaying, TrainState(params_of(0), decaying.init(params_of(0))), jax.tree.map(jnp.zeros_like, params_of(0))
    )
    np.testing.assert_allclose(shrunk.params["embedding"], 0.95 * params_of(0)["embedding"], rtol=1e-6)


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (8, 1), (2, 4)])
def test_a_gradient_step_is_one_of_the_mean_over_all_rows(data: int, fsdp: int) -> None:
    mesh = mesh_of(data, fsdp)

    def loss(learnt: Any, base: Any, batch: Any) -> tuple[jax.Array, Any]:
        value = (learnt["w"] * base * batch).mean()
        return value, {"loss": value, "largest": batch.max()}

    optimizer = optax.sgd(1.0)
    state = TrainState({"w": jnp.array([2.0])}, optimizer.init({"w": jnp.array([2.0])}))
    state = jax.device_put(state, shardings(mesh, state))
    base = jax.device_put(jnp.array([3.0]), shardings(mesh, {"base": jnp.array([3.0])})["base"])
    batch = split_rows(mesh, np.arange(8, dtype=np.float32))
    step = make_gradient_step(loss, optimizer, mesh)
    after, metrics = step(state, base, batch)
    # The mean of 0..7 is 3.5, times 3 is 10.5: the sum over eight replicas would be 84, the first device's share 0.
    assert {name: float(value) for name, value in metrics.items()} == {
        "loss": 21.0,
        "grad_norm": 10.5,
        # A mean over devices too, which for this is none of the rows: what is given must be a mean.
        "largest": 7.0 if data * fsdp == 1 else 3.5,
    }
    assert after.params["w"].tolist() == [2.0 - 10.5]
    # The buffers are used again, but never those of the base.
    assert state.params["w"].is_deleted() and not base.is_deleted()
    again, _ = step(after, base, batch)
    assert again.params["w"].tolist() == [2.0 - 21.0]


# The watch.


def metrics_of(**values: float) -> dict[str, jax.Array]:
    return {name.replace("__", "/"): jnp.float32(value) for name, value in values.items()}


GOOD = metrics_of(loss=0.5, reward=1.0, rewards__format__mean=0.5, grad_norm=2.0)


def stopped(watch: Watch, *arguments: Any) -> str:
    """The message that the watch stops with."""
    with pytest.raises(InputError) as caught:
        watch.add(*arguments) if arguments else watch.catch_up()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, 2)


def test_a_watch_looks_at_a_step_when_the_next_one_was_started(checkpoints: Checkpoints) -> None:
    watch = Watch("warmup", checkpoints)
    watch.add(1, GOOD)
    # The bad step itself passes: its metrics are still being computed.
    watch.add(2, GOOD | metrics_of(loss=float("nan")))
    assert stopped(watch, 3, GOOD) == (
        "warmup: loss is nan at step 2; no checkpoint was saved yet; "
        "lower warmup.optimizer.learning_rate or max_grad_norm, or compute in float32"
    )


class Unfinished:
    """A metric that nobody may wait for."""

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the watch waits for the step that was just started")


def test_a_watch_does_not_wait_for_the_step_that_was_just_started(checkpoints: Checkpoints) -> None:
    watch = Watch("warmup", checkpoints)
    watch.add(1, GOOD)
    unfinished: Any = {"loss": Unfinished()}
    watch.add(2, unfinished)
    with pytest.raises(AssertionError, match="just started"):
        watch.catch_up()


def test_a_watch_catches_up(checkpoints: Checkpoints) -> None:
    watch = Watch("score", checkpoints)
    watch.catch_up()
    watch.add(1, GOOD)
    watch.catch_up()
    watch.catch_up()
    watch.add(2, GOOD | metrics_of(grad_norm=float("inf")))
    assert stopped(watch) == (
        "score: grad_norm is inf at step 2; no checkpoint was saved yet; "
        "lower score.optimizer.learning_rate or max_grad_norm, or compute in float32"
    )
    # What was looked at is not looked at again.
    watch.catch_up()
    watch.add(3, GOOD)
    watch.catch_up()


def test_a_watch_names_the_last_checkpoint(checkpoints: Checkpoints) -> None:
    watch = Watch("score", checkpoints)
    for step in (10, 20):
        checkpoints.save(step, {"x": jnp.zeros(2)})
    watch.add(27, metrics_of(loss=float("-inf")))
    assert stopped(watch) == (
        "score: loss is -inf at step 27; step 20 is the last checkpoint; "
        "lower score.optimizer.learning_rate or max_grad_norm, or compute in float32"
    )


def test_a_watch_names_the_reward_that_spoils_everything_else(checkpoints: Checkpoints) -> None:
    nan = float("nan")
    watch = Watch("warmup", checkpoints)
    # In the order of the metrics the loss stands first, in that of the alphabet the accuracy.
    watch.add(
        4, metrics_of(loss=nan, accuracy=nan, reward=nan, rewards__format__mean=1.0, rewards__own__mean=float("inf"))
    )
    assert stopped(watch) == (
        "warmup: rewards/own/mean is inf at step 4; no checkpoint was saved yet; mend that reward"
    )
    watch.add(4, metrics_of(accuracy=nan, grad_norm=nan, loss=nan))
    assert stopped(watch).startswith("warmup: loss is nan")
    # `reward` is the sum, and no reward.
    watch.add(5, metrics_of(loss=1.0, reward=nan, rewards__own__mean=1.0))
    assert stopped(watch) == (
        "warmup: reward is nan at step 5; no checkpoint was saved yet; "
        "lower warmup.optimizer.learning_rate or max_grad_norm, or compute in float32"
    )


def test_large_and_small_numbers_are_finite(checkpoints: Checkpoints) -> None:
    watch = Watch("warmup", checkpoints)
    watch.add(1, metrics_of(loss=3e38, grad_norm=0.0, kl=-1e-45))
    watch.catch_up()


def test_processes_agree_on_the_largest_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes the layout that has room for the rows of every process."""
    assert largest(2) == 2
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda own: np.stack([own, np.array(3), np.array(1)]))
    assert (largest(2), largest(5)) == (3, 5)
