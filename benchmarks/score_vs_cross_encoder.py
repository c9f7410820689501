"""Our score learning next to sentence-transformers' CrossEncoderTrainer: pairs per second, memory and losses.

    python benchmarks/score_vs_cross_encoder.py [--steps 6] [--cases bce listwise] [--out FILE.json]

Both train the same folder in float32 on the CPU: a random Qwen2 of 10 million parameters with the tokenizer of the
built-in base, exported by us and read by `CrossEncoder(path)` with its LogitScore module. A step is 8 queries with 8
documents each, prompts of 60 to 200 tokens, of which none is cut, and everything from text to the new parameters:
tokenisation, padding, loss, gradient, AdamW. The trainer gets its rows before the clock starts. `bce` is its
BinaryCrossEntropyLoss on pairs; `listwise` is its ListNetLoss, whose targets are a softmax of the labels, so that our
`listwise_softmax` gets the labels' exponentials.

Two processes live side by side and take turns, so that they never compute at once. A turn is a pass through the same
batches, step by step as in training: the first step behind the other's turn takes up to a third longer, which would
count in every step if the turns were single steps. The first pass warms up, so that all shapes are compiled; of the
other two the medians count. Memory is the most that a process held resident, compilation included, and how much that
is above what it held before its first step. The benchmark fails unless both scored the given prompts, and unless their
losses of the first step are equal to 1e-4. Measure on an idle machine: beside other work torch may take ten times as
long.

The trainer computes float32 without compilation, with its default attention (PyTorch's own). ListNetLoss computes as
many pairs at a time as there are queries, its default, so that it pads to the longest document of 8.
Linux only; needs sentence-transformers and datasets.
"""

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from math import exp
from pathlib import Path
from typing import Any

from _cross_encoder import Row, Step, Work, answer, serve_theirs
from _processes import Prompts, Turns, alive, in_fresh_process
from _record import parser, write
from grpo_vs_trl import MODEL as SHAPE
from grpo_vs_trl import write_model

MODEL = SHAPE | {"initializer_range": 0.08}
"""Weights so large that the scores of documents differ, and with them the losses where anything is wrong."""
QUERIES, DOCUMENTS = 8, 8
"""Of a step."""
LOSSES = {"bce": "bce", "listwise": "listwise_softmax"}
"""Our names of the losses."""
MAX_LENGTH, SHORTEST, LONGEST = 256, 60, 200
"""Tokens of a prompt: the most that both would take, and what the texts make of it."""
OPTIMIZER: dict[str, Any] = {
    "learning_rate": 1e-5,
    "warmup_fraction": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}
CONSTANT = 1_000_000
"""Steps of a schedule so long that the learning rate stays what it is, as the trainer's does."""
PASSES = 3
"""Through the batches; the first one warms up."""
TOLERANCE = 1e-4
"""Between the losses of the first step."""


def export(random: Path, folder: Path) -> None:
    """Exports the model of `random` as we export any, with the tokenizer of the built-in base."""
    from prorank_jax import demo
    from prorank_jax.card import Record
    from prorank_jax.config import PromptConfig
    from prorank_jax.export import export_model
    from prorank_jax.model.hf import load_pretrained
    from prorank_jax.prompt import load_prompt

    base = Path(demo.__path__[0]) / "tiny_base"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, random)
    pretrained = load_pretrained(random)
    prompt = load_prompt(pretrained, PromptConfig(max_length=MAX_LENGTH), str(random))
    export_model(folder, pretrained, pretrained.params, prompt, Record("random"))


def make_batches(folder: Path, steps: int) -> tuple[list[list[Row]], list[Prompts]]:
    """Rows of each step, with texts of all lengths, and the ids of their prompts."""
    import numpy as np

    from prorank_jax.config import PromptConfig
    from prorank_jax.demo.english import excerpt
    from prorank_jax.model.hf import read_folder
    from prorank_jax.prompt import load_prompt

    # Longer than any prompt here, so that what is measured is the whole text.
    prompt = load_prompt(read_folder(folder), PromptConfig(max_length=8 * MAX_LENGTH), str(folder))
    rng = np.random.default_rng(0)

    def document(query: str) -> str:
        while True:
            text = " ".join(excerpt(rng, int(rng.integers(5, 80))))
            if SHORTEST <= len(prompt.encode(query, text)) <= LONGEST:
                return text

    def row() -> Row:
        query = " ".join(excerpt(rng, int(rng.integers(4, 11))))
        labels = (1.0, *[0.0] * (DOCUMENTS - 1))
        return Row(query, tuple(document(query) for _ in labels), labels)

    batches = [[row() for _ in range(QUERIES)] for _ in range(steps)]
    encode = prompt.encode_batch
    return batches, [
        [tuple(ids) for ids in encode([(row.query, text) for row in rows for text in row.documents])]
        for rows in batches
    ]


def serve_ours(turns: Turns, work: Work) -> None:
    """Our steps, one each time it is asked. All that the benchmark knows of our stage is in here."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from prorank_jax.config import MeshConfig, PromptConfig, ScoreConfig
    from prorank_jax.data.examples import Group
    from prorank_jax.data.layout import choose_layouts, first_fit
    from prorank_jax.model.decoder import Decoder, Params
    from prorank_jax.model.hf import load_pretrained
    from prorank_jax.prompt import load_prompt
    from prorank_jax.runtime.mesh import make_mesh, shardings, split_rows
    from prorank_jax.runtime.optimizer import make_optimizer
    from prorank_jax.runtime.training import TrainState
    from prorank_jax.scoring.batches import EncodedGroups, encode_groups, group_batch
    from prorank_jax.scoring.step import make_step

    pretrained = load_pretrained(work.folder)
    prompt = load_prompt(pretrained, PromptConfig(max_length=MAX_LENGTH), str(work.folder))
    config = ScoreConfig.model_validate(
        {
            "steps": CONSTANT,
            "loss": LOSSES[work.loss],
            "queries_per_step": QUERIES,
            "documents_per_query": DOCUMENTS,
            "optimizer": work.optimizer,
        }
    )
    optimizer = make_optimizer(config.optimizer, config.steps)
    mesh = make_mesh(MeshConfig(data=1, fsdp=1))

    def init(params: Params) -> TrainState:
        return TrainState(params, optimizer.init(params))

    state = jax.jit(init, out_shardings=shardings(mesh, jax.eval_shape(init, pretrained.params)))(pretrained.params)
    step = make_step(Decoder(pretrained.config), prompt.answer_ids, config, optimizer, mesh)

    def encoded(rows: list[Row]) -> EncodedGroups:
        return encode_groups([Group(*row, targets(work.loss, row.labels)) for row in rows], prompt)

    # As the stage does, by the first batches of the stream.
    layouts = choose_layouts([encoded(rows).prompts for rows in work.batches[:16]], DOCUMENTS, MAX_LENGTH)
    for rows in work.batches:
        turns.begin()
        groups = encoded(rows)
        layout = layouts[first_fit(groups.prompts, DOCUMENTS, layouts, 1)]
        batch = group_batch(groups, DOCUMENTS, layout, 1, prompt.pad_id)
        state, metrics = step(state, None, split_rows(mesh, batch))
        jax.block_until_ready(state)
        turns.end()
        answer(turns, laid_out(batch.prompts), float(metrics["loss"]))


def laid_out(prompts: Any) -> Prompts:
    """The ids of each prompt in the arrays, query by query: what the step was given, put together again."""
    found: dict[int, tuple[int, ...]] = {}
    for part in prompts.parts:
        for tokens, length, place in zip(part.tokens_BxL.tolist(), part.lengths_B, part.places_B.tolist(), strict=True):
            query = place // DOCUMENTS
            prefix = prompts.prefix_QxP[query, : prompts.prefix_lengths_Q[query]].tolist()
            found[place] = (*prefix, *tokens[:length])
    return [found[place] for place in range(QUERIES * DOCUMENTS)]


def targets(loss: str, labels: tuple[float, ...]) -> tuple[float, ...]:
    """The labels as our loss takes them: ListNet's targets are `softmax(labels)`, ours `labels / sum(labels)`."""
    return tuple(map(exp, labels)) if loss == "listwise" else labels


def measure(work: Work) -> dict[str, dict[str, Any]]:
    """All steps of both, a pass in turns."""
    systems: dict[str, Callable[[Turns, Work], None]] = {"ours": serve_ours, "theirs": serve_theirs}
    steps: dict[str, list[Step]] = {name: [] for name in systems}
    with ExitStack() as stack:
        ask: dict[str, Callable[[], Any]] = {}
        for name, serve in systems.items():
            child: Any = serve  # `alive` hands over whatever the child takes
            task: Any = work
            # Its first step is over, imports and compilation too, before the next one starts.
            ask[name] = stack.enter_context(alive(name, child, task))
            steps[name].append(ask[name]())
        a_pass = len(work.batches) // PASSES
        for number in range(PASSES):
            for name in systems:
                steps[name] += [ask[name]() for _ in range(a_pass - (number == 0))]
    for name, of in steps.items():
        for number, (step, prompts) in enumerate(zip(of, work.ids, strict=True)):
            if step.prompts != prompts:
                raise SystemExit(f"{name}, step {number}: scored other prompts than were given; the times say nothing")
    first = {name: of[0].loss for name, of in steps.items()}
    if abs(first["ours"] - first["theirs"]) > TOLERANCE:
        raise SystemExit(f"{work.loss}: losses of the first step differ: {first}; the times say nothing")
    return {name: summary(of) for name, of in steps.items()}


def summary(steps: list[Step]) -> dict[str, Any]:
    """What is written of one side."""
    timed = steps[len(steps) // PASSES :]
    before, peak = steps[0].before_bytes / 2**20, steps[-1].peak_bytes / 2**20
    seconds = statistics.median(step.seconds for step in timed)
    return {
        "pairs_per_second": QUERIES * DOCUMENTS / seconds,
        "seconds": seconds,
        "samples": [step.seconds for step in timed],
        "first_step_seconds": steps[0].seconds,
        "other_cores": statistics.mean(step.other_cores for step in timed),
        "peak_mib": peak,
        "peak_mib_above_start": peak - before,
        "losses": [step.loss for step in steps],
    }


def faster(systems: dict[str, dict[str, Any]]) -> float:
    """Our pairs per second over theirs."""
    return float(systems["ours"]["pairs_per_second"] / systems["theirs"]["pairs_per_second"])


def report(case: str, systems: dict[str, dict[str, Any]]) -> str:
    """One line of the table."""
    parts = [f"{of['pairs_per_second']:13.1f}{of['peak_mib']:8.0f}{of['losses'][0]:10.6f}" for of in systems.values()]
    return f"{case:10}{''.join(parts)}{faster(systems):13.2f}"


def headline(cases: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The ratios and the speeds behind them, in one line."""
    parts = []
    for case, systems in cases.items():
        ours, theirs = (systems[name]["pairs_per_second"] for name in ("ours", "theirs"))
        apart = abs(systems["ours"]["losses"][0] - systems["theirs"]["losses"][0])
        parts.append(f"{case}: {faster(systems):.2f}x ({ours:.1f} and {theirs:.1f} pairs/s, losses {apart:.0e} apart)")
    return f"ours / CrossEncoderTrainer, {'; '.join(parts)}"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=6, help="batches of a pass")
    arguments.add_argument("--cases", choices=list(LOSSES), nargs="+", default=list(LOSSES), help="losses")
    options = arguments.parse_args()
    cases: dict[str, dict[str, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        random, exported = Path(name) / "random", Path(name) / "exported"
        parameters = in_fresh_process(write_model, random, MODEL)
        in_fresh_process(export, random, exported)
        batches, ids = in_fresh_process(make_batches, exported, options.steps)
        columns = "".join(f"{f'{side}: pairs/s':>15}{'MiB':>7}{'loss 1':>9}" for side in ("ours", "theirs"))
        print(f"{'':8}{columns}{'ours/theirs':>13}")
        for case in options.cases:
            cases[case] = measure(Work(exported, case, batches * PASSES, ids * PASSES, OPTIMIZER))
            print(report(case, cases[case]), flush=True)
            for side, of in cases[case].items():
                if of["other_cores"] > 0.1:
                    others = f"other processes used {of['other_cores']:.1f} cores"
                    print(f"{side}, {case}: {others}; measure on an idle machine", file=sys.stderr)
    if options.out:
        lengths = [len(prompt) for prompts in ids for prompt in prompts]
        record = {
            "headline": headline(cases),
            "ours_over_theirs": faster(cases[options.cases[0]]),
            "by_loss": {case: faster(systems) for case, systems in cases.items()},
            "cases": cases,
            "settings": {
                "model": MODEL,
                "parameters": parameters,
                "dtype": "float32",
                "queries_per_step": QUERIES,
                "documents_per_query": DOCUMENTS,
                "prompt_tokens": {"least": min(lengths), "mean": statistics.mean(lengths), "most": max(lengths)},
                "max_length": MAX_LENGTH,
                "optimizer": OPTIMIZER,
                "batches": options.steps,
            },
        }
        libraries = ("jax", "jaxlib", "torch", "transformers", "sentence-transformers")
        write(options.out, record, libraries=libraries)
    print(headline(cases))


if __name__ == "__main__":
    main()
