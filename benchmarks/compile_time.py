"""Compile time by depth: layers are scanned, so 24 should take hardly longer than 4.

    python benchmarks/compile_time.py [--grad] [--out FILE.json]

For one small configuration of each family: seconds to trace and lower the forward pass of 2 rows of 128 tokens, and to
compile it, with 4 and with 24 layers; with `--grad` also the gradient of a score. No array is made. The two depths
take turns, with empty caches, and the shortest of five times counts.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from _record import parser, write
from jax import Array, ShapeDtypeStruct

from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.families import FAMILIES, decoder_config

SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
    "tie_word_embeddings": True,
}
SHALLOW, DEEP = 4, 24
ROWS, LENGTH = 2, 128
REPETITIONS = 5
TARGET = 1.2
"""What the ratio of compile times of the forward pass, deep over shallow, stays below."""

Program = Callable[[Params, Array, Array, Array], Any]


class Seconds(NamedTuple):
    """The shortest times of one program at one depth; each is the minimum of its own."""

    lower: float
    compile: float
    total: float


def forward(decoder: Decoder) -> Program:
    """Hidden states [B, L, D]."""
    return lambda params, tokens_BxL, positions_BxL, mask_BxLxL: decoder.forward(
        params, tokens_BxL, positions_BxL, mask_BxLxL
    )[0]


def score_gradient(decoder: Decoder) -> Program:
    """The gradient of the mean difference of two tokens' logits at the last position."""

    def score(params: Params, tokens_BxL: Array, positions_BxL: Array, mask_BxLxL: Array) -> Array:
        hidden_BxLxD, _ = decoder.forward(params, tokens_BxL, positions_BxL, mask_BxLxL)
        no_B, yes_B = decoder.unembed(params, hidden_BxLxD[:, -1], jnp.array([0, 1])).T
        return (yes_B - no_B).mean()

    return jax.grad(score)


def once(family: str, layers: int, make: Callable[[Decoder], Program]) -> Seconds:
    """One compilation with empty caches."""
    decoder = Decoder(decoder_config({"model_type": family, **SHAPE, "num_hidden_layers": layers}, family))
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    tokens_BxL = ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    mask_BxLxL = ShapeDtypeStruct((ROWS, LENGTH, LENGTH), jnp.bool_)
    jax.clear_caches()
    start = time.perf_counter()
    lowered = jax.jit(make(decoder)).lower(params, tokens_BxL, tokens_BxL, mask_BxLxL)
    middle = time.perf_counter()
    lowered.compile()
    end = time.perf_counter()
    return Seconds(middle - start, end - middle, end - start)


def measure(family: str, make: Callable[[Decoder], Program]) -> tuple[Seconds, Seconds]:
    """The shortest times of the shallow and of the deep decoder."""
    best = {SHALLOW: Seconds(math.inf, math.inf, math.inf), DEEP: Seconds(math.inf, math.inf, math.inf)}
    for _ in range(REPETITIONS):
        for layers, seconds in best.items():
            best[layers] = Seconds(*map(min, seconds, once(family, layers, make)))
    return best[SHALLOW], best[DEEP]


def row(program: str, family: str, shallow: Seconds, deep: Seconds) -> str:
    """One line of the table."""
    times = "".join(f"{one.lower:9.3f}{one.compile:9.3f}" for one in (shallow, deep))
    return f"{program:9} {family:12}{times}{deep.compile / shallow.compile:9.2f}{deep.total / shallow.total:9.2f}"


def figures(shallow: Seconds, deep: Seconds) -> dict[str, Any]:
    """What is written of one program of one family."""
    return {
        f"{SHALLOW}_layers": shallow._asdict(),
        f"{DEEP}_layers": deep._asdict(),
        "compile_ratio": deep.compile / shallow.compile,
        "total_ratio": deep.total / shallow.total,
    }


def headline(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The worst ratio of compile times of each program."""
    parts = []
    for program, families in results.items():
        worst = max(families, key=lambda family: families[family]["compile_ratio"])
        ratio, total = families[worst]["compile_ratio"], max(one["total_ratio"] for one in families.values())
        parts.append(f"{program} {ratio:.2f}x at worst ({worst}), {total:.2f}x with tracing")
    return f"compile time, {DEEP} layers over {SHALLOW}: {'; '.join(parts)}"


def accelerator() -> str:
    """The accelerator in words."""
    if jax.default_backend() == "cpu":
        return "no accelerator"
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--grad", action="store_true", help="also the gradient of a score")
    options = arguments.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    programs = {"forward": forward} | ({"gradient": score_gradient} if options.grad else {})
    depths = f"{f'{SHALLOW} layers':>18}{f'{DEEP} layers':>18}{f'{DEEP}/{SHALLOW}':>18}"
    print(
        f"{'seconds':22}{depths}\n{'':22}{'lower':>9}{'compile':>9}{'lower':>9}{'compile':>9}{'compile':>9}{'both':>9}"
    )
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for program, make in programs.items():
        results[program] = {}
        for family in FAMILIES:
            shallow, deep = measure(family, make)
            print(row(program, family, shallow, deep), flush=True)
            results[program][family] = figures(shallow, deep)
    if options.out:
        record = {
            "headline": headline(results),
            "targets": {"forward_compile_ratio": TARGET},
            "rows": ROWS,
            "length": LENGTH,
            "repetitions": REPETITIONS,
            "shape": SHAPE,
            "programs": results,
        }
        write(options.out, record, libraries=("jax", "jaxlib", "flax"), accelerator=accelerator())
    print(headline(results))


if __name__ == "__main__":
    main()
