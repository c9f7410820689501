"""A GRPO step next to TRL's: seconds and memory, over the size of the group.

    python benchmarks/grpo_vs_trl.py [--groups 2 8 16] [--steps 5] [--cases even mixed] [--ours-only] [--out FILE.json]

Both train the same random weights, written by transformers, on the same prompts in float32 on the CPU, with the same G,
T, beta, clip and optimizer, and one update per batch of rollouts. A step is everything from token ids (ours) or text
(TRL's) to the new parameters. Two processes live side by side and take turns, so that they never compute at once: one
step each to warm up, then the medians of the others. Memory is the most that a process held resident, compilation
included, and how much that is above what it held before its first step. The benchmark fails unless both saw the given
prompts and made all P x G x T tokens.

Without Triton, so on a CPU, TRL 1.16 puts the prompts' positions through the unembedding too and does not use the
result; `--completions-head` spares it that. Linux only; needs trl, unless `--ours-only`, and 8 GiB of memory.
"""

import os
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from _processes import Report, Serve, Task, Turns, alive, in_fresh_process
from _record import parser, write
from _trl import serve_trl

MODEL: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 8192,
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 1024,
    "tie_word_embeddings": True,
}
"""10 million parameters."""
TINY = MODEL | {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 128}
CASES = {"even": (204, 204, 204, 204), "mixed": (100, 230, 370, 500)}
"""Lengths of the prompts of a step."""
WARMUP: dict[str, Any] = {
    "max_new_tokens": 4,
    "temperature": 1.0,
    "beta": 0.04,
    "clip_low": 0.2,
    "clip_high": 0.2,
    "optimizer": {"learning_rate": 1e-5, "warmup_fraction": 0.0, "max_grad_norm": 1.0},
}
"""As in the section `warmup` of a configuration; TRL gets the same values."""
PAD = 0


def write_model(folder: Path, fields: dict[str, Any]) -> int:
    """A random model written by transformers; returns how many parameters it has."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def serve_ours(turns: Turns, task: Task) -> None:
    """Our steps, one each time it is asked."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp
    import numpy as np

    from prorank_jax.config import GrpoConfig, MeshConfig
    from prorank_jax.data.loader import PairBatch, pad_prompts
    from prorank_jax.model.decoder import Decoder, Params
    from prorank_jax.model.hf import load_pretrained
    from prorank_jax.runtime.mesh import make_mesh, shardings, split_rows
    from prorank_jax.runtime.optimizer import make_optimizer
    from prorank_jax.runtime.training import TrainState
    from prorank_jax.warmup.rewards import AnswerTokens
    from prorank_jax.warmup.step import make_step

    pretrained = load_pretrained(task.folder)
    config = GrpoConfig(
        steps=len(task.batches),
        prompts_per_step=len(task.batches[0]),
        group_size=task.group_size,
        **task.warmup,
    )
    answers = AnswerTokens(1, 2, task.vocabulary)
    optimizer = make_optimizer(config.optimizer, config.steps)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1))

    def init(params: Params) -> TrainState:
        return TrainState(params, optimizer.init(params))

    layout = shardings(mesh, jax.eval_shape(init, pretrained.params))
    state = jax.jit(init, out_shardings=layout)(pretrained.params)
    reference = jax.device_put(pretrained.params, layout.params)
    step = make_step(Decoder(pretrained.config), answers, config, optimizer, mesh, seed=0)
    for number, prompts in enumerate(task.batches):
        turns.begin()
        tokens_PxL, lengths_P = pad_prompts(prompts, max(map(len, prompts)), task.pad)
        batch = PairBatch(tokens_PxL, lengths_P, np.arange(len(prompts), dtype=np.int32) % 2)
        state, metrics, *_ = step(state, reference, split_rows(mesh, batch), jnp.asarray(number))
        jax.block_until_ready(state)
        turns.end()
        rows = zip(tokens_PxL.tolist(), lengths_P, strict=True)
        seen = [tuple(row[:length]) for row, length in rows for _ in range(task.group_size)]
        turns.report(seen, round(float(metrics["completions/mean_length"]) * len(seen)))


def check(name: str, number: int, report: Report, task: Task) -> None:
    """Ends the benchmark when a step was not the work that was asked for."""
    prompts = [prompt for prompt in task.batches[number] for _ in range(task.group_size)]
    tokens = len(prompts) * task.warmup["max_new_tokens"]
    if report.tokens != tokens:
        raise SystemExit(f"{name}, step {number}: made {report.tokens} tokens, not {tokens}; the times say nothing")
    # TRL shuffles the completions of a step.
    if sorted(report.prompts) != sorted(prompts):
        raise SystemExit(f"{name}, step {number}: saw other prompts than were given; the times say nothing")


def measure(systems: Mapping[str, Serve], task: Task) -> dict[str, dict[str, Any]]:
    """All steps of each system, taken in turns; the first warms up."""
    reports: dict[str, list[Report]] = {name: [] for name in systems}
    with ExitStack() as stack:
        steps = {}
        for name, serve in systems.items():
            # Its first step is over, imports and compilation too, before the next one starts.
            steps[name] = stack.enter_context(alive(name, serve, task))
            reports[name].append(steps[name]())
        for _ in task.batches[1:]:
            for name, step in steps.items():
                reports[name].append(step())
    for name, of in reports.items():
        for number, report in enumerate(of):
            check(name, number, report, task)
    return {name: summary(of) for name, of in reports.items()}


def summary(reports: list[Report]) -> dict[str, Any]:
    """What is written of one system."""
    samples = [report.seconds for report in reports[1:]]
    before, peak = reports[0].before_bytes / 2**20, reports[-1].peak_bytes / 2**20
    return {
        "seconds": statistics.median(samples),
        "samples": samples,
        "first_step_seconds": reports[0].seconds,
        "other_cores": statistics.mean(report.other_cores for report in reports[1:]),
        "peak_mib": peak,
        "peak_mib_above_start": peak - before,
    }


def warn(case: str, group_size: int, systems: dict[str, dict[str, Any]]) -> None:
    """Says so when other processes took time away: torch with all cores in use may then take ten times as long."""
    for name, of in systems.items():
        if of["other_cores"] > 0.1:
            others = f"other processes used {of['other_cores']:.1f} cores"
            print(f"{name}, {case}, G={group_size}: {others}; measure on an idle machine", file=sys.stderr)


def row(case: str, group_size: int, systems: dict[str, dict[str, Any]]) -> str:
    """One line of the table."""
    parts = [f"{of['seconds']:11.3f}{of['peak_mib']:8.0f}{of['peak_mib_above_start']:8.0f}" for of in systems.values()]
    ratio = f"{systems['trl']['seconds'] / systems['ours']['seconds']:9.2f}" if "trl" in systems else ""
    return f"{case:6}{group_size:4}{''.join(parts)}{ratio}"


def trl_over_ours(groups: dict[int, dict[str, Any]]) -> dict[int, float]:
    """TRL's seconds over ours, by size of the group; empty without TRL."""
    return {size: of["trl"]["seconds"] / of["ours"]["seconds"] for size, of in groups.items() if "trl" in of}


def growth(groups: dict[int, dict[str, Any]]) -> tuple[int, int, float]:
    """The largest and the smallest group, and our seconds with the one over those with the other."""
    high, low = max(groups), min(groups)
    return high, low, groups[high]["ours"]["seconds"] / groups[low]["ours"]["seconds"]


def figures(groups: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What has targets, of one case."""
    high, low, ratio = growth(groups)
    return {"trl_over_ours": trl_over_ours(groups), f"ours_g{high}_over_g{low}": ratio}


def headline(cases: dict[str, dict[int, dict[str, Any]]]) -> str:
    """The ratios of each case, in one line."""
    parts = []
    for case, groups in cases.items():
        over = ", ".join(f"{ratio:.1f}x at G={size}" for size, ratio in trl_over_ours(groups).items())
        high, low, ratio = growth(groups)
        which = "" if case == "even" else f"{case} lengths: "
        parts.append(f"{which}{f'TRL / ours: {over}; ' if over else ''}ours G={high} / G={low}: {ratio:.2f}x")
    return "; ".join(parts)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--groups", type=int, nargs="+", default=[2, 8, 16], help="completions of each prompt")
    arguments.add_argument("--steps", type=int, default=5, help="timed steps of each system")
    arguments.add_argument("--cases", choices=list(CASES), nargs="+", default=list(CASES), help="lengths of prompts")
    arguments.add_argument("--ours-only", action="store_true", help="leave TRL out")
    arguments.add_argument("--completions-head", action="store_true", help="TRL unembeds the completions only")
    arguments.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    options = arguments.parse_args()
    model = TINY if options.tiny else MODEL
    systems: dict[str, Serve] = {"ours": serve_ours}
    if not options.ours_only:
        systems["trl"] = partial(serve_trl, completions_head=options.completions_head)
    columns = "".join(f"{f'{name}: s':>11}{'MiB':>8}{'+MiB':>8}" for name in systems)
    print(f"{'':10}{columns}{'' if options.ours_only else ' trl/ours'}")
    cases: dict[str, dict[int, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        parameters = in_fresh_process(write_model, Path(name), model)
        for case in options.cases:
            rng, cases[case] = random.Random(0), {}
            tokens = range(PAD + 1, model["vocab_size"])
            batches = [[tuple(rng.choices(tokens, k=k)) for k in CASES[case]] for _ in range(options.steps + 1)]
            for size in options.groups:
                cases[case][size] = measure(systems, Task(Path(name), model["vocab_size"], size, batches, WARMUP, PAD))
                print(row(case, size, cases[case][size]), flush=True)
                warn(case, size, cases[case][size])
    if options.out:
        record = {
            "headline": headline(cases),
            **(figures(cases["even"]) if "even" in cases else {}),
            **({"mixed": figures(cases["mixed"])} if "mixed" in cases else {}),
            "cases": cases,
            "settings": {
                "model": model,
                "parameters": parameters,
                "dtype": "float32",
                "prompt_tokens": {case: CASES[case] for case in cases},
                "warmup": WARMUP,
                "timed_steps": options.steps,
                "trl_unembeds": "completions" if options.completions_head else "prompts and completions",
            },
        }
        libraries = ("jax", "jaxlib", "torch", "transformers", *(() if options.ours_only else ("trl",)))
        write(options.out, record, libraries=libraries)
    print(headline(cases))


if __name__ == "__main__":
    main()
