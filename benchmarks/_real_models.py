"""The rows of the table of real models: which base, what is learnt from what, and in what budget."""

from pathlib import Path
from typing import Any, NamedTuple

BASES = {
    "smollm2": "smollm2-135m",
    "gemma3": "gemma3-270m",
    "qwen2.5-coder": "qwen2.5-coder-0.5b",
}
"""Name -> GGUF file in the folder of models."""
MAX_LENGTH = 176
RANDOM_NEGATIVES = 0.75
"""Share of negatives that are passages of other queries: easy ones are learnt from first."""
MIXTURE = {
    "msmarco_head": 20.0,
    "msmarco_tail": 15.0,
    "nq": 15.0,
    "squad": 7.0,
    "boolq": 5.0,
    "wikiqa": 4.0,
    "claims_fm2": 4.0,
    "claims_covidfact": 4.0,
    "claims_climatefever": 3.0,
    "pubmedqa": 4.0,
    "medquad": 5.0,
    "bioasq": 3.0,
    "covidqa": 3.0,
}
"""File of rows -> weight. MS MARCO's first rows have questions of all kinds, the others mostly "which" and "where"."""
HEAD, HELD_OUT = 2_500, 600
"""Rows of MS MARCO: the first part, and the last ones, which nothing learns from."""
LORA = {"rank": 16, "alpha": 32.0}

WARMUP: dict[str, Any] = {"steps": 60, "prompts_per_step": 32, "log_every": 3, "checkpoint_every": 20}
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"method": "grpo", "group_size": 8, "advantage": "group_mean", "entropy": 0.2},
    "expected": {"method": "expected"},
    "supervised": {"method": "supervised"},
}
SCORE: dict[str, Any] = {
    "steps": 240,
    "queries_per_step": 8,
    "documents_per_query": 4,
    "loss": "listwise_softmax",
    "log_every": 10,
    "checkpoint_every": 40,
}
RATE = {"optimizer": {"learning_rate": 1e-4, "warmup_fraction": 0.1}}
LORA_RATE = {"optimizer": {"learning_rate": 5e-4, "warmup_fraction": 0.1}, "lora": LORA}


class Row(NamedTuple):
    """A model of the table: what it begins with (a base or another row), and the stage that makes it, if any."""

    title: str
    begins: str
    stage: dict[str, Any] | None = None


def _warmup(method: str, **fields: Any) -> dict[str, Any]:
    parts = {} if method == "supervised" else {"accumulation": 2}
    return {"warmup": {**WARMUP, **METHODS[method], **parts, **fields}}


def _score(**fields: Any) -> dict[str, Any]:
    return {"score": {**SCORE, "accumulation": 2, **fields}}


ROWS: dict[str, Row] = {
    "smollm2": Row("SmolLM2-135M, zero-shot", "smollm2"),
    "gemma3": Row("Gemma 3 270M, zero-shot", "gemma3"),
    "qwen2.5-coder": Row("Qwen2.5-Coder-0.5B, zero-shot", "qwen2.5-coder"),
    **{
        f"smollm2-{method}": Row(f"SmolLM2-135M, warmup by `{method}`", "smollm2", _warmup(method, **RATE))
        for method in METHODS
    },
    "smollm2-score": Row("SmolLM2-135M, score learning", "smollm2", _score(**RATE)),
    **{
        f"smollm2-{method}-score": Row(
            f"SmolLM2-135M, `{method}`, then score learning", f"smollm2-{method}", _score(**RATE)
        )
        for method in METHODS
    },
    "qwen2.5-coder-expected": Row(
        "Qwen2.5-Coder-0.5B, warmup by `expected`, LoRA", "qwen2.5-coder", _warmup("expected", **LORA_RATE)
    ),
    "qwen2.5-coder-score": Row("Qwen2.5-Coder-0.5B, score learning, LoRA", "qwen2.5-coder", _score(**LORA_RATE)),
}
ORDER = (
    ("smollm2-expected", "smollm2"),
    ("smollm2-expected-score", "smollm2-expected"),
    ("smollm2-expected-score", "smollm2-score"),
    ("smollm2-grpo", "smollm2"),
    ("smollm2-grpo-score", "smollm2-score"),
    ("smollm2-supervised-score", "smollm2-score"),
    ("qwen2.5-coder-score", "qwen2.5-coder"),
)
"""Pairs of rows that the paper puts in an order: the first is to be above the second."""


def configuration(row: Row, base: Path, rows: Path, seed: int, dtype: str) -> dict[str, Any]:
    """The run that makes a row from `base`, with the files of rows in the folder `rows`."""
    assert row.stage is not None
    first, *others = (
        {"path": str(rows / f"{name}.jsonl"), "weight": weight, "random_negatives": RANDOM_NEGATIVES}
        for name, weight in MIXTURE.items()
    )
    return {
        "seed": seed,
        "model": {"base": str(base), "dtype": dtype},
        "prompt": {"max_length": MAX_LENGTH},
        "data": {**first, "mix": others},
        **row.stage,
    }
