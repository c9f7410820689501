"""One step of GRPO or of its limit, from a batch of prompts to new parameters, as one compiled program."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from prorank_jax.config import ExpectedConfig, GrpoConfig, PolicyConfig
from prorank_jax.data.layout import Layout
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.runtime.mesh import ROWS, keep_place, mean_gradient, mean_over_devices, on_devices, specs
from prorank_jax.runtime.training import Metrics, TrainState, descend
from prorank_jax.seeds import key
from prorank_jax.warmup import expected, policy
from prorank_jax.warmup.policy import Experience, Means
from prorank_jax.warmup.reading import longest_first
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.rollout import Rollout


class Completions(NamedTuple):
    """What there is to show of a step: prompts, their completions, and the rewards of each, by name [P, G]."""

    batch: PairBatch[Array]
    rollout: Rollout
    rewards: dict[str, Array]


Step = Callable[[TrainState, Params | None, PairBatch[Array], Array], tuple[TrainState, Metrics, Completions | None]]
"""`(state, base, batch, number) -> (state, metrics, completions)`; the buffers of the state are used again."""


def make_step(
    decoder: Decoder,
    answers: AnswerTokens,
    config: GrpoConfig | ExpectedConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    layout: Layout | None = None,
) -> Step:
    """The compiled step.

    Its `number` seeds the rollouts, prompt by prompt: the update depends neither on how many devices share the batch
    nor on how many parts it is computed in. Metrics are those of the rollouts, and means over the iterations.
    """
    if isinstance(config, GrpoConfig):
        losses = policy.make_losses(decoder, answers, config, layout)
    else:
        losses = expected.make_losses(decoder, answers, config, layout)
    chooses = chooses_prompts(config)
    fresh, replay = (jax.grad(loss, has_aux=True) for loss in losses)

    def update(state: TrainState, gradient: Params, means: Means) -> tuple[TrainState, Metrics]:
        weight = jnp.maximum(means["loss"].weight, 1e-9)
        state, norm = descend(optimizer, state, jax.tree.map(lambda leaf: leaf / weight.astype(leaf.dtype), gradient))
        return keep_place(mesh, state), {name: mean.value for name, mean in means.items()} | {"grad_norm": norm}

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, base: Params | None, batch: PairBatch[Array], number: Array
    ) -> tuple[TrainState, Metrics, Completions | None]:
        places, base_places = specs(mesh, state.params), specs(mesh, base)

        def over_devices(gradient: Params, means: Means) -> tuple[Params, Means]:
            return mean_gradient(mesh, gradient, places), mean_over_devices(means)

        def again(learnt: Params, base: Params | None, experience: Experience) -> tuple[Params, Means]:
            def part(rows: Experience) -> tuple[tuple[Params, Means], None]:
                return replay(learnt, base, rows), None

            (gradient, means), _ = _in_parts(part, experience, config.accumulation)
            return over_devices(gradient, means)

        def first(
            learnt: Params, base: Params | None, batch: PairBatch[Array], keys_P: Array
        ) -> tuple[Params, Means, Experience]:
            def part(rows: tuple[PairBatch[Array], Array]) -> tuple[tuple[Params, Means], Experience]:
                rows = longest_first(rows, rows[0].lengths_P, layout)
                gradient, (means, experience) = fresh(learnt, base, *rows)
                return (gradient, means), experience

            (gradient, means), experience = _in_parts(part, (batch, keys_P), config.accumulation)
            return *over_devices(gradient, means), experience

        def drawn_first(
            learnt: Params, base: Params | None, batch: PairBatch[Array], keys_P: Array
        ) -> tuple[Params, Means, Experience]:
            """All completions, of which those of whole batches say what is learnt from and what it is worth."""

            def part(rows: tuple[PairBatch[Array], Array]) -> tuple[Means, Experience]:
                return losses.fresh(learnt, base, *rows)[1]

            means, experience = _in_parts(part, (batch, keys_P), config.accumulation)
            assert isinstance(config, GrpoConfig)
            chosen = _chosen(experience, config)
            gradient, later = again(learnt, base, chosen)
            return gradient, mean_over_devices(means) | later, chosen

        keys_P = jax.random.split(jax.random.fold_in(key(seed, "warmup/rollouts"), number), len(batch.labels_P))
        whole = drawn_first if chooses else first
        mapped = on_devices(mesh, whole, (places, base_places, ROWS, ROWS), (places, P(), ROWS))
        gradient, means, experience = mapped(state.params, base, batch, keys_P)
        state, metrics = update(state, gradient, means)
        if config.iterations > 1:
            mapped = on_devices(mesh, again, (places, base_places, ROWS), (places, P()))
            state, later = lax.scan(
                lambda state, _: update(state, *mapped(state.params, base, experience)),
                state,
                length=config.iterations - 1,
            )
            metrics |= {name: (metrics[name] + later[name].sum()) / config.iterations for name in later}
        return state, metrics, Completions(experience.batch, experience.rollout, experience.rewards)

    return step


def chooses_prompts(config: PolicyConfig) -> bool:
    """Whether it is known only after all completions of a device are drawn which prompts are learnt from, or how.

    Which of them are long is not known before either, so these have no layout."""
    return isinstance(config, GrpoConfig) and (config.oversampling > 1 or config.advantage.startswith("batch"))


def _chosen(experience: Experience, config: GrpoConfig) -> Experience:
    """The prompts of a device that are learnt from, with advantages over the whole batch where these are asked for."""
    reward_PxG = experience.reward_PxG
    if config.oversampling > 1:
        alike_P = reward_PxG.std(axis=1) < 1e-6
        rows = jnp.sort(jnp.argsort(alike_P, stable=True)[: len(alike_P) // config.oversampling])
        experience = jax.tree.map(lambda leaf: leaf[rows], experience)
        reward_PxG = experience.reward_PxG
    if config.advantage.startswith("batch"):
        centred = reward_PxG - mean_over_devices(reward_PxG.mean())
        if config.advantage == "batch_std":
            centred /= jnp.sqrt(mean_over_devices((centred**2).mean())) + 1e-4
        experience = experience._replace(advantage_PxG=centred)
    return experience


def _in_parts(function: Callable[[Any], tuple[Any, Any]], rows: Any, parts: int) -> tuple[Any, Any]:
    """Sums the first result of `function` over equal parts of the rows, and joins the rows of its second."""
    if parts == 1:
        return function(rows)
    split = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), rows)
    summed, _ = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], split))

    def add(total: Any, part: Any) -> tuple[Any, Any]:
        value, kept = function(part)
        return jax.tree.map(jnp.add, total, value), kept

    total, kept = lax.scan(add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), summed), split)
    return total, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), kept)
