"""A GRPO step of a full-size model on a CPU: seconds and peak memory, with and without LoRA.

    python benchmarks/full_size_step.py [--steps 3] [--out FILE.json]

Qwen2.5-0.5B in its published shape with random weights, float32; 2 prompts of 256 tokens, 8 completions of 4 tokens
each, AdamW. Without LoRA also with a reference policy, which is a second copy of the parameters; with LoRA it is
the same parameters without adapters. Each variant runs in a process of its own, whose peak memory counts
interpreter, libraries and compilation. The first step, which compiles, is told apart. Needs 14 GB of memory.
"""

import resource
import statistics
import time
from typing import Any, Literal, NamedTuple

from _processes import in_fresh_process
from _record import parser, write
from import_model import MODELS

MODEL = "Qwen2.5-0.5B"
PROMPTS, LENGTH = 2, 256
GROUP, NEW_TOKENS = 8, 4
LORA = {"rank": 16, "alpha": 32.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"beta": 0.0},
    "full_with_reference": {"beta": 0.04},
    "lora_with_reference": {"beta": 0.04, "lora": LORA},
}
TARGET_GB = 12.0

Remat = Literal["none", "dots", "full"]


class Measured(NamedTuple):
    """One variant: seconds of the step that compiles and of the others, and the process's peak memory."""

    first_seconds: float
    seconds: list[float]
    peak_gb: float


def measure(variant: dict[str, Any], remat: Remat, steps: int) -> Measured:
    """Runs `1 + steps` steps."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from prorank_jax.config import GrpoConfig, MeshConfig, OptimizerConfig
    from prorank_jax.data.loader import PairBatch
    from prorank_jax.model.decoder import Decoder
    from prorank_jax.model.families import decoder_config
    from prorank_jax.model.lora import init_learnt
    from prorank_jax.runtime.mesh import make_mesh, split_rows
    from prorank_jax.runtime.optimizer import make_optimizer
    from prorank_jax.runtime.training import TrainState
    from prorank_jax.warmup.rewards import AnswerTokens
    from prorank_jax.warmup.step import make_step

    config = GrpoConfig.model_validate(
        {
            "steps": 1 + steps,
            "prompts_per_step": PROMPTS,
            "group_size": GROUP,
            "max_new_tokens": NEW_TOKENS,
            **variant,
        }
    )
    hf_config = {**MODELS[MODEL], "hidden_act": "silu", "max_position_embeddings": 32_768}
    decoder = Decoder(decoder_config(hf_config, MODEL), remat=remat)
    base = jax.jit(decoder.init)(jax.random.key(0))
    optimizer = make_optimizer(OptimizerConfig(), 1 + steps)
    mesh = make_mesh(MeshConfig(data=1))
    step = make_step(decoder, AnswerTokens(15, 16, 151_645), config, optimizer, mesh, seed=0)

    def init(params: Any) -> TrainState:
        return TrainState(params, optimizer.init(params))

    state = jax.jit(init)(init_learnt(config.lora, decoder.config, base, jax.random.key(1)))
    if not config.beta:
        del base
    rng = np.random.default_rng(0)
    seconds = []
    for number in range(1 + steps):
        tokens = rng.integers(0, decoder.config.vocabulary, (PROMPTS, LENGTH)).astype(np.int32)
        batch = PairBatch(tokens, np.full(PROMPTS, LENGTH, np.int32), np.array([1, 0], np.int32))
        start = time.perf_counter()
        state, _, _ = step(state, base if config.beta else None, split_rows(mesh, batch), jnp.asarray(number))
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return Measured(seconds[0], seconds[1:], peak)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=3, help="timed steps of each variant")
    arguments.add_argument("--remat", default="dots", choices=("none", "dots", "full"))
    options = arguments.parse_args()
    figures: dict[str, Any] = {}
    for name, variant in VARIANTS.items():
        measured = in_fresh_process(measure, variant, options.remat, options.steps)
        median = statistics.median(measured.seconds)
        figures[name] = {**measured._asdict(), "median_seconds": median}
        print(f"{name:20}{median:7.2f} s (the first {measured.first_seconds:.1f} s), peak {measured.peak_gb:.2f} GB")
    if options.out:
        settings = {
            "model": MODEL,
            "dtype": "float32",
            "prompts": PROMPTS,
            "prompt_tokens": LENGTH,
            "group_size": GROUP,
            "max_new_tokens": NEW_TOKENS,
            "variants": VARIANTS,
            "remat": options.remat,
        }
        write(options.out, {"settings": settings, **figures}, libraries=("jax", "flax", "optax"))
    told = (f"{name} {figures[name]['median_seconds']:.1f} s, {figures[name]['peak_gb']:.1f} GB" for name in VARIANTS)
    print(f"{MODEL}, a step: {'; '.join(told)} (target: under {TARGET_GB:g} GB)")


if __name__ == "__main__":
    main()
