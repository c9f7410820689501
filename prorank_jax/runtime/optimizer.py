"""The optimizer of both stages: AdamW behind a clip of the global norm, on a rising-then-cosine schedule.

Second moments average over about 20 steps (b2 = 0.95), not 1000 (0.999). Runs here last some hundreds of
steps, so 0.999 would still be dividing by the gradients of the first ones; and GRPO's gradient is zero
whenever all answers of a group agree, after which a lone large gradient would move a parameter by up to
0.1 / sqrt(0.001) = 3.2 learning rates with 0.999, and by 0.1 / sqrt(0.05) = 0.45 with 0.95.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from prorank_jax.config import OptimizerConfig

_FLOOR = 0.1
"""The learning rate of the last step, as a share of the highest."""


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of update `count` (0 is the first) out of `steps`.

    It rises by equal amounts over the first `warmup_fraction` of the steps, the first of which already
    learns; from its highest value it falls along a half cosine and is a tenth of it at the last step.

        learning_rate 1.0, warmup_fraction 0.4, 5 steps:  0.5, 1.0, 0.775, 0.325, 0.1
    """
    rising = round(config.warmup_fraction * steps)
    top = max(rising - 1, 0)

    def schedule(count: ArrayLike) -> jax.Array:
        done = jnp.asarray(count, jnp.float32)
        rise = jnp.minimum((done + 1.0) / max(rising, 1), 1.0)
        fall = jnp.clip((done - top) / max(steps - 1 - top, 1), 0.0, 1.0)
        cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * fall))
        return config.learning_rate * rise * (_FLOOR + (1.0 - _FLOOR) * cosine)

    return schedule


def decay_mask(params: Any) -> Any:
    """True for each parameter that weight decay shrinks: the matrices, among them the embedding.

    The first axis of what lies under `layers/` counts the layers, and a bias may be shaped by heads, so the
    number of axes alone does not tell a matrix:

        embedding [V, D] True                      final_norm/scale [D] False
        layers/mlp/up/kernel [layers, D, F] True   layers/norm/scale [layers, D] False
        layers/attention/query/bias [layers, N, H] False
    """

    def decays(path: tuple[Any, ...], parameter: Any) -> bool:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        axes = parameter.ndim - (names[0] == "layers")
        return axes >= 2 and names[-1] != "bias"

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (Loshchilov and Hutter, arXiv 1711.05101) over `steps` updates."""
    chain = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=0.9,
            b2=0.95,
            eps=1e-8,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # Optax raises a float to the integer count of updates, which a caller's strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = chain.update(gradients, state, params)
        return updates, state

    return optax.GradientTransformation(chain.init, update)
