"""Adapters: where they go, how they begin, and that with them the network is the one that is merged from them."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _small_decoder import random_params
from jax.sharding import AxisType, Mesh

from prorank_jax.config import LoraConfig, OptimizerConfig
from prorank_jax.model.attention import Rope, causal_mask
from prorank_jax.model.decoder import Decoder, DecoderConfig, Params
from prorank_jax.model.lora import init_adapters, init_learnt, merged, network
from prorank_jax.runtime.mesh import shardings
from prorank_jax.runtime.optimizer import decay_mask, make_optimizer

pytestmark = pytest.mark.usefixtures("fast_compilation")

# All widths differ: D 12, N * H 32, K * H 16, F 14.
QWEN2 = DecoderConfig(
    vocabulary=11,
    width=12,
    layers=3,
    heads=4,
    kv_heads=2,
    head_size=8,
    mlp_width=14,
    rope=Rope(),
    norm_epsilon=1e-6,
    query_scale=0.5,
    qkv_bias=True,
    tied=True,
)
GEMMA = replace(
    QWEN2,
    qkv_bias=False,
    qk_norm=True,
    centred_norms=True,
    post_norms=True,
    activation="gelu_tanh",
    embedding_scale=12**0.5,
    attention_cap=50.0,
    logit_cap=30.0,
    sliding=(True, False, True),
    window=3,
)
CONFIGS = [QWEN2, GEMMA]
every_family = pytest.mark.parametrize("config", CONFIGS, ids=["qwen2", "gemma"])

# A matrix by its name in Hugging Face checkpoints -> where its kernel lies, its inputs and its outputs.
PLACES = {
    "q_proj": ("attention", "query", 12, 32),
    "k_proj": ("attention", "key", 12, 16),
    "v_proj": ("attention", "value", 12, 16),
    "o_proj": ("attention", "output", 32, 12),
    "gate_proj": ("mlp", "gate", 12, 14),
    "up_proj": ("mlp", "up", 12, 14),
    "down_proj": ("mlp", "down", 14, 12),
}


def lora_of(targets: Sequence[str] = tuple(PLACES), rank: int = 3, alpha: float = 12.0) -> LoraConfig:
    return LoraConfig.model_validate({"rank": rank, "alpha": alpha, "targets": list(targets)})


@cache
def base_of(config: DecoderConfig) -> Params:
    params = random_params(Decoder(config), 0, 0.2)
    if not config.centred_norms:
        return params
    # Scales around 1 are stored as their differences from it.
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf - float(path[-1].key == "scale"), params)


def flat(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def random_adapters(config: DecoderConfig, lora: LoraConfig, seed: int = 5) -> Params:
    """Adapters whose B is not zero."""
    rng = np.random.default_rng(seed)
    begun = init_adapters(lora, config, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), jnp.float32), begun)


@cache
def forward(config: DecoderConfig) -> Any:
    @jax.jit
    def logits(params: Params) -> jax.Array:
        tokens = jnp.asarray(np.random.default_rng(3).integers(0, 11, (2, 7)), jnp.int32)
        positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
        decoder = Decoder(config)
        hidden, _ = decoder.forward(params, tokens, positions, causal_mask(jnp.array([7, 7]), 7))
        return decoder.unembed(params, hidden)

    return logits


@every_family
def test_every_target_gets_its_two_factors(config: DecoderConfig) -> None:
    for target, (block, name, width_in, width_out) in PLACES.items():
        adapters = init_adapters(lora_of([target]), config, jax.random.key(0))
        # Heads are no axes of their own: `rank` is between the flat inputs and the flat outputs.
        assert {path: (leaf.shape, leaf.dtype.name) for path, leaf in flat(adapters).items()} == {
            f"layers/{block}/{name}/lora_a": ((3, width_in, 3), "float32"),
            f"layers/{block}/{name}/lora_b": ((3, 3, width_out), "float32"),
        }, target


def test_several_targets_are_those_and_no_others() -> None:
    adapters = init_adapters(lora_of(["down_proj", "q_proj"], rank=5), QWEN2, jax.random.key(0))
    assert {path: leaf.shape for path, leaf in flat(adapters).items()} == {
        "layers/attention/query/lora_a": (3, 12, 5),
        "layers/attention/query/lora_b": (3, 5, 32),
        "layers/mlp/down/lora_a": (3, 14, 5),
        "layers/mlp/down/lora_b": (3, 5, 12),
    }
    assert len(flat(init_adapters(lora_of(), QWEN2, jax.random.key(0)))) == 14


def test_b_is_zero_and_a_is_uniform_within_the_inverse_root_of_its_inputs() -> None:
    adapters = flat(init_adapters(lora_of(rank=64), QWEN2, jax.random.key(0)))
    starts = []
    for target, (block, name, width_in, _) in PLACES.items():
        a, b = (np.asarray(adapters[f"layers/{block}/{name}/lora_{x}"]) for x in "ab")
        assert not b.any()
        bound = width_in**-0.5
        assert np.abs(a).max() <= bound, target
        # Over all of the interval, as one of 2304 or more uniform numbers is; a normal start would have passed it.
        assert a.max() > 0.99 * bound and a.min() < -0.99 * bound
        assert a.std() == pytest.approx(bound / 3**0.5, rel=0.05)
        starts += [layer[:12, :].ravel() / bound for layer in a]
    # Each matrix of each layer begins elsewhere.
    related = np.abs(np.corrcoef(starts) - np.eye(len(starts)))
    assert len(starts) == 21 and related.max() < 0.25


def test_the_start_follows_from_the_seed_and_the_matrix() -> None:
    first, again, other = (init_adapters(lora_of(), QWEN2, jax.random.key(seed)) for seed in (0, 0, 1))
    alone = init_adapters(lora_of(["v_proj"]), QWEN2, jax.random.key(0))
    for path, leaf in flat(first).items():
        np.testing.assert_array_equal(leaf, flat(again)[path])
        assert (np.asarray(leaf) != np.asarray(flat(other)[path])).all() == path.endswith("lora_a")
    # What else is a target does not matter.
    for path, leaf in flat(alone).items():
        np.testing.assert_array_equal(leaf, flat(first)[path])


@every_family
def test_a_network_begins_as_its_base(config: DecoderConfig) -> None:
    base, lora = base_of(config), lora_of()
    logits = forward(config)(network(lora, base, init_learnt(lora, config, base, jax.random.key(1))))
    np.testing.assert_array_equal(logits, forward(config)(base))


def hand_merged(base: Params, adapters: Params, targets: Sequence[str]) -> dict[str, np.ndarray]:
    """W + alpha / rank * A B in float64, matrix by matrix: alpha 12 and rank 3 make 4."""
    kernels = {path: np.asarray(leaf, np.float64) for path, leaf in flat(base).items()}
    for target in targets:
        block, name, _, _ = PLACES[target]
        path = f"layers/{block}/{name}"
        a, b = (np.asarray(flat(adapters)[f"{path}/lora_{x}"], np.float64) for x in "ab")
        kernel = kernels[f"{path}/kernel"]
        kernels[f"{path}/kernel"] = kernel + 4.0 * np.stack([x @ y for x, y in zip(a, b, strict=True)]).reshape(
            kernel.shape
        )
    return kernels


@every_family
@pytest.mark.parametrize("targets", [*([target] for target in PLACES), list(PLACES)], ids="+".join)
def test_with_adapters_the_network_is_the_merged_one(config: DecoderConfig, targets: list[str]) -> None:
    base, lora = base_of(config), lora_of(targets)
    kept = jax.tree.map(np.array, base)
    adapters = random_adapters(config, lora)
    whole = merged(lora, base, adapters)
    wanted = hand_merged(base, adapters, targets)
    assert flat(whole).keys() == wanted.keys()
    for path, leaf in flat(whole).items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_allclose(leaf, wanted[path], atol=1e-5, err_msg=path)

    logits, expected = forward(config)(network(lora, base, adapters)), forward(config)(whole)
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    # A matrix without its adapter would show.
    assert float(jnp.abs(expected - forward(config)(base)).max()) > 1e-2
    # The base is what it was: the reference policy of a KL term.
    assert flat(base).keys() == flat(kept).keys()
    for path, leaf in flat(base).items():
        np.testing.assert_array_equal(leaf, flat(kept)[path])


@every_family
def test_the_gradient_reaches_the_adapters_alone(config: DecoderConfig) -> None:
    base, lora = base_of(config), lora_of()
    adapters = random_adapters(config, lora)

    def value(adapters: Params, through: Any) -> jax.Array:
        return jnp.square(forward(config)(through(lora, base, adapters))).mean()

    got, want = (jax.jit(jax.grad(lambda x, f=f: value(x, f)))(adapters) for f in (network, merged))
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want)) > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max()), got, want)


def test_adapters_compute_in_the_compute_dtype() -> None:
    decoder, lora = Decoder(QWEN2, jnp.dtype("bfloat16")), lora_of()

    def value(adapters: Params) -> jax.Array:
        tokens = jnp.zeros((1, 4), jnp.int32)
        mask = causal_mask(jnp.array([4]), 4)
        params = network(lora, base_of(QWEN2), adapters)
        hidden, _ = decoder.forward(params, tokens, jnp.arange(4)[None], mask)
        assert hidden.dtype == jnp.bfloat16
        return decoder.unembed(params, hidden).sum()

    gradient = jax.eval_shape(jax.grad(value), random_adapters(QWEN2, lora))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}


def test_without_adapters_the_parameters_themselves_learn() -> None:
    base, learnt = base_of(QWEN2), base_of(GEMMA)
    assert init_learnt(None, QWEN2, base, jax.random.key(0)) is base
    assert network(None, None, learnt) is learnt
    assert network(None, base, learnt) is learnt
    assert merged(None, base, learnt) is learnt


def test_adapters_are_whole_on_every_device() -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    adapters = init_adapters(lora_of(rank=4), QWEN2, jax.random.key(0))
    state = {"params": adapters, "optimizer": make_optimizer(OptimizerConfig(), 10).init(adapters)}
    for path, place in flat(shardings(mesh, state)).items():
        assert place.is_fully_replicated, path
    # Where their kernels, of the same mesh, are split.
    kernels = {path: place for path, place in flat(shardings(mesh, base_of(QWEN2))).items() if "kernel" in path}
    assert len(kernels) == 7 and not any(place.is_fully_replicated for place in kernels.values())


def test_weight_decay_shrinks_both_factors() -> None:
    adapters = init_adapters(lora_of(), QWEN2, jax.random.key(0))
    assert set(flat(decay_mask(adapters)).values()) == {True}
    assert len(flat(decay_mask(adapters))) == 14
