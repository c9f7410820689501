"""float32 means float32: what is promised in it asks for it, on chips that would otherwise multiply fewer bits."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from _small_decoder import random_params, small_config
from jax.extend.core import jaxprs_in_params
from meshes import mesh_of

from prorank_jax.config import LoraConfig
from prorank_jax.config_file import parse_config
from prorank_jax.model.attention import causal, causal_mask
from prorank_jax.model.decoder import Decoder, Remat
from prorank_jax.model.long_attention import attend_long
from prorank_jax.model.lora import init_adapters, merged
from prorank_jax.model.precision import product
from prorank_jax.planning.steps import make_job
from prorank_jax.scoring.scores import answer_log_probs, answer_margin

DOT = re.compile(r"dot_general .*?precision = \[(\w+), (\w+)\] : \(tensor<([^>]*)>, tensor<([^>]*)>\)")
FLOAT32, BFLOAT16, MIXED = ("f32", "HIGHEST"), ("bf16", "DEFAULT"), ("mixed", "DEFAULT")


def products(function: Any, *arguments: Any) -> Counter[tuple[str, str]]:
    """The products of matrices that a TPU is asked for, by dtype and precision: `{("f32", "HIGHEST"): 3}`."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).as_text()
    found = DOT.findall(text)
    assert len(found) == text.count("stablehlo.dot_general") > 0
    counts: Counter[tuple[str, str]] = Counter()
    for left, right, *operands in found:
        assert left == right
        kinds = {operand.split("x")[-1] for operand in operands}
        counts["mixed" if len(kinds) > 1 else kinds.pop(), left] += 1
    return counts


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> tuple[Decoder, Any]:
    decoder = Decoder(small_config(61, tied=True), jnp.dtype(request.param))
    return decoder, random_params(decoder, 0, 0.2)


def test_scores_are_float32_whatever_the_model_computes_in(model: tuple[Decoder, Any]) -> None:
    decoder, params = model
    last_BxD = jnp.zeros((3, 16), decoder.dtype)
    margins = products(lambda params, last: answer_margin(decoder, params, last, (1, 2)), params, last_BxD)
    assert margins == {FLOAT32: 1}
    log_probs = products(lambda params, last: answer_log_probs(decoder, params, last[None], (1, 2)), params, last_BxD)
    assert log_probs == {FLOAT32: 1}


def test_adapters_are_merged_in_float32(model: tuple[Decoder, Any]) -> None:
    decoder, params = model
    lora = LoraConfig(rank=2, targets=("q_proj", "down_proj"))
    adapters = init_adapters(lora, decoder.config, jax.random.key(0))
    assert products(lambda params, adapters: merged(lora, params, adapters), params, adapters) == {FLOAT32: 2}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["warmup", "score", "rerank"])
def test_all_layers_compute_in_what_the_model_is_in(stage: str, dtype: str) -> None:
    """Forward and backward, with adapters, rollouts, and a divergence from the base."""
    learning = {"steps": 1, "lora": {"rank": 2}, "optimizer": {"learning_rate": 1e-4}}
    run = parse_config(
        {
            "model": {"base": "somewhere", "dtype": dtype},
            "prompt": {"max_length": 16},
            "data": {"path": "somewhere"},
            "warmup": {"prompts_per_step": 2, "group_size": 2, "max_new_tokens": 2, "beta": 0.1, **learning},
            "score": {"queries_per_step": 2, "documents_per_query": 2, **learning},
        }
    )
    job = make_job(run, small_config(61, tied=False), mesh_of(1, 2), stage)
    found = products(job.function, *job.arguments.values())
    if dtype == "float32":
        assert found.keys() == {FLOAT32}
        return
    # Nothing that costs more, but for the scores: the two rows of the unembedding, and in training their gradient.
    assert found.pop(FLOAT32, 0) == {"warmup": 0, "score": 2, "rerank": 1}[stage]
    assert found.keys() <= {BFLOAT16, MIXED}


def precisions(jaxpr: Any) -> Iterator[Any]:
    """Of every product in a program and in those that it calls, kernels too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from precisions(inner)


@pytest.mark.parametrize(("dtype", "wanted"), [("float32", {jax.lax.Precision.HIGHEST}), ("bfloat16", set())])
def test_the_kernel_for_many_keys_computes_in_what_its_rows_are_in(dtype: str, wanted: set[Any]) -> None:
    query, key = jnp.ones((1, 128, 2, 64), dtype), jnp.ones((1, 128, 1, 64), dtype)

    def total(query: Any, key: Any) -> Any:
        return attend_long(query, [key], [key], causal(jnp.array([128]), 128), 0.125).astype(jnp.float32).sum()

    found = list(precisions(jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(query, key).jaxpr))
    # Two forward; backward those of queries, keys and values, for which the forward ones are computed again.
    assert len(found) >= 7
    assert {one for both in found if both is not None for one in both if one != jax.lax.Precision.DEFAULT} == wanted
    if wanted:
        assert None not in found


@pytest.mark.parametrize("rows", [7, 24])
def test_a_product_of_sixteen_bits_and_its_gradients_are_summed_in_float32(rows: int) -> None:
    rng = np.random.default_rng(rows)
    x, gradient = (jnp.asarray(rng.normal(size=(rows, size)), jnp.bfloat16) for size in (300, 5))
    kernel = jnp.asarray(rng.normal(size=(300, 5)), jnp.float32)
    y, pull_back = jax.vjp(product, x, kernel)
    of_x, of_kernel = pull_back(gradient)
    assert (y.dtype, of_x.dtype, of_kernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    # The operands are rounded, and what comes out: nothing in between.
    exact_x, exact_gradient, exact_kernel = (np.asarray(a, np.float64) for a in (x, gradient, kernel.astype(x.dtype)))
    np.testing.assert_allclose(np.asarray(y, np.float64), exact_x @ exact_kernel, rtol=2**-8, atol=1e-4)
    np.testing.assert_allclose(np.asarray(of_x, np.float64), exact_gradient @ exact_kernel.T, rtol=2**-8, atol=1e-4)
    np.testing.assert_allclose(of_kernel, exact_x.T @ exact_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rematerialisation_keeps_the_results_of_linear_maps(dtype: str) -> None:
    """`dots` computes attention's two products of a layer again, `full` its linear maps too, but the last of them."""
    tokens, positions = jnp.zeros((2, 8), jnp.int32), jnp.broadcast_to(jnp.arange(8), (2, 8))
    mask = causal_mask(jnp.array([8, 5]), 8)

    def count(remat: Remat) -> int:
        decoder = Decoder(small_config(61, tied=True), jnp.dtype(dtype), remat=remat)

        def total(params: Any) -> Any:
            hidden, _ = decoder.forward(params, tokens, positions, mask)
            return hidden.astype(jnp.float32).sum()

        return sum(1 for _ in precisions(jax.make_jaxpr(jax.grad(total))(random_params(decoder, 0, 0.2)).jaxpr))

    assert count("dots") - count("none") == 2
    assert count("full") - count("none") == 2 + 6
