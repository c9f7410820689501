"""What share of the machine's own matrix products a training step reaches, at SmolLM2-135M's shape.

    python benchmarks/machine_share.py [--steps 3] [--dtypes float32] [--cases score warmup grpo] [--out FILE.json]

Random weights in the published shape. Prompts are of a length as those of MS MARCO are (32 tokens that all share, then
40 to 144), from a seed. `score`: 8 queries with 4 documents, laid out as the stage does; `warmup`: 32 prompts by
`method: expected`; `grpo`: 16 prompts with 8 completions of at most 4 tokens. All parameters learn, with AdamW,
`remat: dots` and as many parts as the memory of a small machine asks for.

The share is of float32: FLOPs of the tokens that a step needs (a prefix once, padding and recomputation not at all)
per second, over what the products of the model's own matrices reach when nothing else is computed (best of five, all
cores, the same run). So bfloat16 may pass 1 on a processor that multiplies it. `slots` counts padding too: the
difference of the two is what padding costs. The first step compiles and is not counted; the fastest of the others is.
"""

import os
import resource
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from _processes import in_fresh_process
from _record import parser, write

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
}
LONGEST, SHARED, SHORTEST_REST = 176, 32, 40
QUERIES, DOCUMENTS = 8, 4
PARTS = 2
GOAL = 0.75
CASES = ("score", "warmup", "grpo")


class Measured(NamedTuple):
    """A case: seconds of its fastest step, GFLOP/s of needed tokens and of all slots, of the machine, and memory."""

    seconds: float
    needed: float
    slots: float
    machine: float
    peak_gb: float

    @property
    def share(self) -> float:
        return self.needed / self.machine


def product_rate(config: Any, tokens: int) -> float:
    """GFLOP/s of float32 products of so many tokens with the matrices of the layers' mlp and attention, in a chain."""
    import jax
    import jax.numpy as jnp

    D, F = config.width, config.mlp_width
    maps = [(D, D), (D, F), (F, D)] * 4
    kernels = [jnp.full(shape, 1e-2 / shape[0], jnp.float32) for shape in maps]

    @jax.jit
    def chain(x: Any, kernels: Any) -> Any:
        for kernel in kernels:
            x = x @ kernel
        return x

    x = jnp.ones((tokens, D), jnp.float32)
    flops = 2 * tokens * sum(into * out for into, out in maps)
    chain(x, kernels).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        chain(x, kernels).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return flops / min(seconds) / 1e9


def measure(case: str, dtype: str, steps: int) -> Measured:
    """Runs `1 + steps` steps of a case."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp
    import numpy as np

    from prorank_jax.config import MeshConfig
    from prorank_jax.model.decoder import Decoder
    from prorank_jax.model.families import decoder_config
    from prorank_jax.planning import flops
    from prorank_jax.runtime.mesh import make_mesh
    from prorank_jax.runtime.optimizer import make_optimizer
    from prorank_jax.runtime.training import TrainState

    rng = np.random.default_rng(0)
    config = decoder_config(SHAPE, "SmolLM2-135M")
    decoder = Decoder(config, jnp.dtype(dtype))
    mesh = make_mesh(MeshConfig(data=1))

    def prompts(count: int) -> list[list[int]]:
        rests = rng.integers(SHORTEST_REST, LONGEST - SHARED + 1, count)
        return [[*range(SHARED), *rng.integers(SHARED, config.vocabulary, length).tolist()] for length in rests]

    make = {"score": _score, "warmup": _warmup, "grpo": _grpo}[case]
    run, stage, needed, slots = make(decoder, mesh, prompts, flops)
    optimizer = make_optimizer(stage.optimizer, stage.steps)
    state = jax.jit(lambda params: TrainState(params, optimizer.init(params)))(jax.jit(decoder.init)(jax.random.key(0)))
    step = run(optimizer)
    seconds = []
    for number in range(1 + steps):
        start = time.perf_counter()
        state = step(state, number)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    fastest = min(seconds[1:])
    # What was allocated is let go of before the machine is measured, as the products run beside nothing.
    del state
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    machine = product_rate(config, QUERIES * DOCUMENTS // PARTS * (SHARED + LONGEST) // 2)
    return Measured(fastest, needed / fastest / 1e9, slots / fastest / 1e9, machine, peak)


Made = tuple[Callable[[Any], Callable[[Any, int], Any]], Any, float, float]
"""What makes a step of an optimizer, the stage's configuration, and FLOPs of needed tokens and of all slots."""


def _learning(c: Any, tokens: float, flops: Any) -> float:
    """FLOPs of learning from so many tokens, which see as many as half of the longest prompt has."""
    return float(3 * flops.forward(c, tokens, LONGEST / 2))


def _score(decoder: Any, mesh: Any, prompts: Callable[[int], list[list[int]]], flops: Any) -> Made:
    import numpy as np

    from prorank_jax.config import ScoreConfig
    from prorank_jax.data.layout import choose_layouts, split
    from prorank_jax.runtime.mesh import split_rows
    from prorank_jax.scoring.batches import EncodedGroups, group_batch
    from prorank_jax.scoring.step import make_step

    stage = ScoreConfig.model_validate(
        {
            "steps": 1000,
            "loss": "listwise_softmax",
            "queries_per_step": QUERIES,
            "documents_per_query": DOCUMENTS,
            "accumulation": PARTS,
        }
    )
    labels = np.array([1.0] + [0.0] * (DOCUMENTS - 1), np.float32)
    groups = EncodedGroups([prompts(DOCUMENTS) for _ in range(QUERIES)], [labels] * QUERIES)
    layout = choose_layouts(split(groups.prompts, PARTS), DOCUMENTS, LONGEST)[0]
    batch = split_rows(mesh, group_batch(groups, DOCUMENTS, layout, PARTS, 0))
    needed = groups.tokens - QUERIES * (DOCUMENTS - 1) * SHARED
    slots = PARTS * layout.tokens(QUERIES // PARTS, DOCUMENTS)

    def run(optimizer: Any) -> Callable[[Any, int], Any]:
        step = make_step(decoder, (1, 2), stage, optimizer, mesh)
        return lambda state, number: step(state, None, batch)[0]

    return run, stage, _learning(decoder.config, needed, flops), _learning(decoder.config, slots, flops)


def _policy(
    fields: dict[str, Any], kind: Any, decoder: Any, mesh: Any, prompts: Callable[[int], list[list[int]]], flops: Any
) -> Made:
    import jax.numpy as jnp
    import numpy as np

    from prorank_jax.data.loader import PairBatch, pad_prompts
    from prorank_jax.runtime.mesh import split_rows
    from prorank_jax.warmup.reading import layouts_for
    from prorank_jax.warmup.rewards import AnswerTokens
    from prorank_jax.warmup.step import make_step

    stage = kind.model_validate({"steps": 1000, "accumulation": PARTS, **fields})
    P = stage.prompts_per_step
    tokens, lengths = pad_prompts(prompts(P), LONGEST, 0)
    rows = PairBatch(tokens, lengths, np.arange(P, dtype=np.int32) % 2)
    layout, batch = layouts_for([rows], PARTS)[0], split_rows(mesh, rows)
    completions = flops.warmup(decoder.config, stage, LONGEST) - _learning(decoder.config, P * LONGEST, flops)
    needed = int(lengths.sum()) - (P - PARTS) * SHARED

    def run(optimizer: Any) -> Callable[[Any, int], Any]:
        step = make_step(decoder, AnswerTokens(1, 2, 0), stage, optimizer, mesh, 0, layout)
        return lambda state, number: step(state, None, batch, jnp.asarray(number))[0]

    slots = PARTS * layout.tokens(1, P // PARTS)
    needed_flops, slot_flops = (_learning(decoder.config, tokens, flops) + completions for tokens in (needed, slots))
    return run, stage, needed_flops, slot_flops


def _warmup(decoder: Any, mesh: Any, prompts: Callable[[int], list[list[int]]], flops: Any) -> Made:
    from prorank_jax.config import ExpectedConfig

    fields = {"method": "expected", "prompts_per_step": QUERIES * DOCUMENTS}
    return _policy(fields, ExpectedConfig, decoder, mesh, prompts, flops)


def _grpo(decoder: Any, mesh: Any, prompts: Callable[[int], list[list[int]]], flops: Any) -> Made:
    from prorank_jax.config import GrpoConfig

    fields = {"prompts_per_step": QUERIES * DOCUMENTS // 2, "group_size": 8, "max_new_tokens": 4}
    return _policy(fields, GrpoConfig, decoder, mesh, prompts, flops)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=3, help="timed steps of each case")
    arguments.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    arguments.add_argument(
        "--cases", nargs="+", default=["score", "warmup", "grpo"], choices=("score", "warmup", "grpo")
    )
    options = arguments.parse_args()
    figures: dict[str, Any] = {}
    for case in options.cases:
        for dtype in options.dtypes:
            measured = in_fresh_process(measure, case, dtype, options.steps)
            figures[f"{case} {dtype}"] = {**measured._asdict(), "share": measured.share}
            rates = f"{measured.needed:.0f} GFLOP/s, {measured.slots:.0f} with padding, of {measured.machine:.0f}"
            took = f"{measured.seconds:.2f} s, {measured.peak_gb:.1f} GB"
            print(f"{case} {dtype}: {took}; {rates}: share {measured.share:.2f}", flush=True)
    if options.out:
        write(options.out, {"shape": SHAPE, "parts": PARTS, **figures}, libraries=("jax", "flax", "optax"))
    shares = "; ".join(f"{name} {figure['share']:.2f}" for name, figure in figures.items())
    print(f"share of the machine's float32 products: {shares} (goal: {GOAL} in float32)")


if __name__ == "__main__":
    main()
