"""A decoder of a few thousand weights for tests and toys, and parameters with which every token matters."""

import jax
import jax.numpy as jnp
import numpy as np

from prorank_jax.model.attention import Rope
from prorank_jax.model.decoder import Decoder, DecoderConfig, Params


def small_config(vocabulary: int, tied: bool) -> DecoderConfig:
    """Two layers of four heads in two groups, with bias."""
    return DecoderConfig(
        vocabulary=vocabulary,
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        head_size=4,
        mlp_width=24,
        rope=Rope(),
        norm_epsilon=1e-6,
        query_scale=0.5,
        qkv_bias=True,
        tied=tied,
    )


def random_params(decoder: Decoder, seed: int, spread: float) -> Params:
    """Parameters far enough from zero that every token matters; norms around 1."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(rng.normal(path[-1].key == "scale", spread, leaf.shape), jnp.float32), shapes
    )
