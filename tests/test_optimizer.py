import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prorank_jax.config import OptimizerConfig
from prorank_jax.runtime.optimizer import decay_mask, learning_rate, make_optimizer


def _rates(config: OptimizerConfig, steps: int) -> list[float]:
    schedule = learning_rate(config, steps)
    return [float(schedule(jnp.int32(count))) for count in range(steps)]


def test_the_rate_rises_linearly_then_falls_along_a_cosine_to_a_tenth() -> None:
    rates = _rates(OptimizerConfig(learning_rate=2.0, warmup_fraction=0.4), steps=10)
    # The first update already learns (a rise from zero would make it 0), the fourth has the whole rate; then
    # 2 * (0.1 + 0.9 * (1 + cos(pi * k / 6)) / 2) for k = 1..6.
    falling = [1.879423, 1.55, 1.1, 0.65, 0.320577, 0.2]
    np.testing.assert_allclose(rates, [0.5, 1.0, 1.5, 2.0, *falling], rtol=1e-6)


def test_the_docstring_example() -> None:
    rates = _rates(OptimizerConfig(learning_rate=1.0, warmup_fraction=0.4), steps=5)
    np.testing.assert_allclose(rates, [0.5, 1.0, 0.775, 0.325, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("fraction", "steps", "expected"),
    [(0.0, 3, [1.0, 0.55, 0.1]), (1.0, 2, [0.5, 1.0]), (0.05, 1, [1.0])],
)
def test_no_rise_all_rise_and_one_step(fraction: float, steps: int, expected: list[float]) -> None:
    rates = _rates(OptimizerConfig(learning_rate=1.0, warmup_fraction=fraction), steps)
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_only_matrices_decay() -> None:
    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape)

    params = {
        "embedding": zeros(10, 4),
        "final_norm": {"scale": zeros(4)},
        "head": {"bias": zeros(2, 2)},
        "layers": {
            "norm": {"scale": zeros(3, 4)},
            "query": {"kernel": zeros(3, 4, 2, 2), "bias": zeros(3, 2, 2)},
            "up": {"kernel": zeros(3, 4, 8), "bias": zeros(3, 8)},
        },
    }
    assert decay_mask(params) == {
        "embedding": True,
        "final_norm": {"scale": False},
        "head": {"bias": False},
        "layers": {
            # Two axes, the first of which counts the layers.
            "norm": {"scale": False},
            # Three axes, and still a bias.
            "query": {"kernel": True, "bias": False},
            "up": {"kernel": True, "bias": False},
        },
    }


def test_two_steps_by_hand() -> None:
    """A clipped gradient, both moments with their corrections, and decay of the matrix alone."""
    config = OptimizerConfig(learning_rate=0.1, warmup_fraction=0.0, weight_decay=0.5, max_grad_norm=1.0)
    optimizer = make_optimizer(config, steps=2)
    params = {"kernel": jnp.array([[2.0]]), "scale": jnp.array([2.0])}
    state = optimizer.init(params)
    # First gradient: norm 5, clipped to (0.6, 0.8). Second: norm 0.5, left as it is.
    gradients = [(3.0, 4.0), (0.3, -0.4)]
    for kernel, scale in gradients:
        updates, state = optimizer.update({"kernel": jnp.array([[kernel]]), "scale": jnp.array([scale])}, state, params)
        params = jax.tree.map(jnp.add, params, updates)

    # First step: corrected moments are g and g^2, so each parameter moves by the whole rate, 0.1;
    # the matrix loses 0.1 * 0.5 * 2 = 0.1 besides.
    kernel, scale = 2.0 - 0.1 - 0.1, 2.0 - 0.1
    # Second step, at a tenth of the rate: moments m = 0.9 * 0.1 g1 + 0.1 g2 over 1 - 0.81,
    # v = 0.95 * 0.05 g1^2 + 0.05 g2^2 over 1 - 0.9025.
    kernel_step = ((0.09 * 0.6 + 0.1 * 0.3) / 0.19) / math.sqrt((0.0475 * 0.36 + 0.05 * 0.09) / 0.0975)
    scale_step = ((0.09 * 0.8 - 0.1 * 0.4) / 0.19) / math.sqrt((0.0475 * 0.64 + 0.05 * 0.16) / 0.0975)
    kernel -= 0.01 * kernel_step + 0.01 * 0.5 * kernel
    scale -= 0.01 * scale_step
    np.testing.assert_allclose(params["kernel"], [[kernel]], rtol=1e-6)
    np.testing.assert_allclose(params["scale"], [scale], rtol=1e-6)
