"""What learns in a stage: all parameters, or low-rank adapters (LoRA, arXiv 2106.09685) beside frozen ones.

With adapters, chosen matrices W of every layer act as `W + alpha / rank * A B`. Adapters are a tree of their own,
shaped as the parameters are: `layers/attention/query/lora_a [layers, D, rank]` and `lora_b [layers, rank, N * H]`.
Attached they lie beside their kernels, where `decoder.Linear` finds them; without them the same parameters are the
network as it was before the stage, so that a reference policy needs no copy of it.
"""

import jax
import jax.numpy as jnp
from jax import Array

from prorank_jax.config import LoraConfig
from prorank_jax.model.decoder import DecoderConfig, Params
from prorank_jax.model.precision import precision_of
from prorank_jax.model.tensors import put, tensor_table


def init_learnt(lora: LoraConfig | None, config: DecoderConfig, base: Params, rng: Array) -> Params:
    """What learns, as it begins: `base` itself, or adapters that change nothing yet."""
    return base if lora is None else init_adapters(lora, config, rng)


def network(lora: LoraConfig | None, base: Params | None, learnt: Params) -> Params:
    """The parameters to compute with. `base` is read only where there are adapters."""
    if lora is None:
        return learnt
    assert base is not None
    return _attach(base, learnt, lora.alpha / lora.rank)


def merged(lora: LoraConfig | None, base: Params, learnt: Params) -> Params:
    """Parameters of the same network as `network` gives, without adapters."""
    return learnt if lora is None else _merge(base, learnt, lora.alpha / lora.rank)


def init_adapters(lora: LoraConfig, config: DecoderConfig, rng: Array) -> Params:
    """A is uniform within the inverse root of its inputs, B is zero: the network begins as it was."""
    adapters: Params = {}
    for number, entry in enumerate(tensor_table(config)):
        if entry.kernel and entry.name.split(".")[-2] in lora.targets:
            width_out, width_in = entry.theirs
            bound = width_in**-0.5
            shape = (config.layers, width_in, lora.rank)
            start = jax.random.uniform(jax.random.fold_in(rng, number), shape, jnp.float32, -bound, bound)
            put(adapters, (*entry.path[:-1], "lora_a"), start)
            put(adapters, (*entry.path[:-1], "lora_b"), jnp.zeros((config.layers, lora.rank, width_out)))
    return adapters


def _attach(params: Params, adapters: Params, scale: float) -> Params:
    if "lora_a" in adapters:
        return params | {"lora_a": adapters["lora_a"], "lora_b": adapters["lora_b"] * scale}
    return params | {name: _attach(params[name], value, scale) for name, value in adapters.items()}


def _merge(params: Params, adapters: Params, scale: float) -> Params:
    if "lora_a" in adapters:
        kernel = params["kernel"]
        lora_a, lora_b = adapters["lora_a"], adapters["lora_b"]
        added = jnp.einsum("lir,lro->lio", lora_a, lora_b, precision=precision_of(lora_a.dtype)) * scale
        return params | {"kernel": kernel + added.reshape(kernel.shape)}
    return params | {name: _merge(params[name], value, scale) for name, value in adapters.items()}
