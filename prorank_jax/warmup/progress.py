"""What a user sees of warmup beside the curves: some completions with their rewards, and what a flat reward means."""

from collections import Counter
from typing import Any

import numpy as np
from jax import Array

from prorank_jax.prompt import Prompt
from prorank_jax.warmup.step import Completions

Row = dict[str, Any]
REMEDY = "begin again with warmup.method=expected or supervised, or give warmup.entropy a value (docs/warmup.md)"
"""Against a collapse to one answer."""
_PROMPTS = 2
_FLAT = 0.9
_PATIENCE = 5


def completion_rows(step: int, prompt: Prompt, completions: Completions, weights: dict[str, float]) -> list[Row]:
    """The completions of a step's first prompts, the relevant one and the other, with what each earned.

    One row a prompt: `{"step", "prompt", "label", "completions": [text], "reward": [...], "rewards": {name: [...]}}`.
    """
    tokens_PxL, prompt_P, labels_P = map(_first, completions.batch)
    tokens_PxGxT, lengths_PxG = (_first(x) for x in (completions.rollout.tokens_PxGxT, completions.rollout.lengths_PxG))
    # In 64 bits, so that 3.05 is written as such.
    rewards = {name: _first(value).astype(np.float64) for name, value in completions.rewards.items()}
    rows = []
    for p in range(len(lengths_PxG)):
        texts = [
            str(prompt.tokenizer.decode(tokens[:length]))
            for tokens, length in zip(tokens_PxGxT[p], lengths_PxG[p], strict=True)
        ]
        total_G = sum(weights[name] * value[p] for name, value in rewards.items())
        rows.append(
            {
                "step": step,
                "prompt": str(prompt.tokenizer.decode(tokens_PxL[p, : prompt_P[p]])),
                "label": int(labels_P[p]),
                "completions": texts,
                "reward": np.asarray(total_G).round(4).tolist(),
                "rewards": {name: value[p].round(4).tolist() for name, value in rewards.items()},
            }
        )
    return rows


def _first(value: Array) -> np.ndarray:
    """The rows of the first prompts; of an array that is split over processes, the first of this process's own."""
    if value.is_fully_addressable:
        return np.asarray(value[:_PROMPTS])
    shards = sorted(value.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards[:_PROMPTS]])[:_PROMPTS]


def describe(row: Row) -> str:
    """A row in a line, equal completions together: `label 1: '1<|im_end|>' 2 (x6), 'Yes' 0 (x2)`."""
    counts = Counter(zip(row["completions"], row["reward"], strict=True))
    parts = [
        f"{text!r} {reward:g}" + (f" (x{count})" if count > 1 else "")
        for (text, reward), count in sorted(counts.items(), key=lambda item: (-item[0][1], -item[1]))
    ]
    return f"label {row['label']}: {', '.join(parts)}"


class FlatReward:
    """Notices when groups agree for long: where all completions of a prompt earn the same, it teaches nothing."""

    def __init__(self) -> None:
        self._rows = 0

    def add(self, row: Row) -> str | None:
        """Takes a row of metrics; the explanation where `frac_reward_zero_std` has just stayed high, else None."""
        self._rows = self._rows + 1 if row["frac_reward_zero_std"] > _FLAT else 0
        if self._rows != _PATIENCE:
            return None
        what = (
            f"frac_reward_zero_std has been above {_FLAT} for {_PATIENCE} rows: in nearly every group all completions "
            "earn the same reward, so their advantages are zero and next to nothing is learnt"
        )
        if row["accuracy"] > 0.9:
            return f"{what}. The answers are right: warmup is done; use fewer steps, or harder pairs"
        if row["format_rate"] < 0.1:
            return (
                f"{what}. Almost no completion has the format: look at completions.jsonl, raise warmup.temperature or "
                "warmup.group_size, or begin with warmup.method=supervised"
            )
        return f"{what}. The model has settled on its answers: {REMEDY}"
