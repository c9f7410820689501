"""What warmup shows of itself: completions with their rewards, and the explanation of a flat reward."""

import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from prompts import byte_tokenizer

from prorank_jax.data.loader import PairBatch
from prorank_jax.prompt import Prompt
from prorank_jax.warmup.progress import FlatReward, completion_rows, describe
from prorank_jax.warmup.rollout import Rollout
from prorank_jax.warmup.step import Completions

T = 3


def ids(prompt: Any, text: str) -> list[int]:
    return prompt.tokenizer.encode(text, add_special_tokens=False)


def completions_of(
    batch: PairBatch[np.ndarray], tokens: np.ndarray, lengths: np.ndarray, rewards: dict[str, Any], place: Any = None
) -> Completions:
    """What a step gives to show, its rows where `place` says."""

    def put(value: Any, dtype: Any) -> Any:
        return jax.device_put(np.asarray(value, dtype), place)

    ended = np.ones(lengths.shape, bool)
    rollout = Rollout(put(tokens, np.int32), put(lengths, np.int32), put(ended, bool))
    prompts = PairBatch(*(put(value, np.int32) for value in batch))
    return Completions(prompts, rollout, {name: put(value, np.float32) for name, value in rewards.items()})


def test_rows_are_the_first_two_prompts_with_what_each_completion_earned(prompt: Prompt) -> None:
    end, pad, yes = prompt.end_id, prompt.pad_id, ids(prompt, "Yes")
    one, zero = ids(prompt, "1"), ids(prompt, "0")
    assert len(one) == len(zero) == len(yes) == 1
    texts = ["Is it?\nYes, naïve 文書", "No.", "never shown"]
    encoded = [ids(prompt, text) for text in texts]
    # Padding and the tokens of a longer neighbour are no part of a prompt.
    tokens = np.full((3, 20), pad, np.int32)
    for row, prompt_ids in zip(tokens, encoded, strict=True):
        row[: len(prompt_ids)] = prompt_ids
    batch = PairBatch(tokens, np.array([len(row) for row in encoded], np.int32), np.array([1, 0, 1], np.int32))
    completions = np.array(
        [
            [[*one, end, end], [*yes, end, end]],
            [[*zero, end, end], [*zero, *one, *zero]],
            [[*one, end, end], [*one, end, end]],
        ]
    )
    rewards = {
        "format": [[1, 0], [1, 0], [1, 1]],
        "relevance": [[1, 0], [1, 0], [1, 1]],
        "short": [[0.5, 0.5], [0.5, 1 / 3], [0.5, 0.5]],
    }
    shown = completions_of(batch, completions, np.array([[2, 2], [2, 3], [2, 2]]), rewards)
    weights = {"format": 1.0, "relevance": 2.0, "short": 0.1}
    rows = completion_rows(40, prompt, shown, weights)
    assert [list(row) for row in rows] == [["step", "prompt", "label", "completions", "reward", "rewards"]] * 2
    assert [row["step"] for row in rows] == [40, 40]
    assert [row["prompt"] for row in rows] == texts[:2]
    assert [row["label"] for row in rows] == [1, 0]
    # The end of the turn is shown where it was drawn, and what fills a completion up is not.
    assert [row["completions"] for row in rows] == [["1<|im_end|>", "Yes<|im_end|>"], ["0<|im_end|>", "010"]]
    # 1 + 2 * 1 + 0.1 * 0.5 and 0.1 * 0.5; without the weights it would be 2.5 and 0.5. Four digits are kept.
    close = partial(pytest.approx, abs=1e-6)
    assert [row["reward"] for row in rows] == [close([3.05, 0.05]), close([3.05, 0.0333])]
    assert [list(row["rewards"]) for row in rows] == [["format", "relevance", "short"]] * 2
    kept = {"format": ([1, 0], [1, 0]), "relevance": ([1, 0], [1, 0]), "short": ([0.5, 0.5], [0.5, 0.3333])}
    for name, numbers in kept.items():
        assert [row["rewards"][name] for row in rows] == [close(each) for each in numbers]
    # Plain values, which JSON has words for.
    assert json.loads(json.dumps(rows)) == rows


def test_text_in_byte_tokens_is_whole_text() -> None:
    tokenizer = byte_tokenizer(["<end>"])
    prompt: Any = SimpleNamespace(tokenizer=tokenizer)
    encoded, end = ids(prompt, "für?"), tokenizer.convert_tokens_to_ids("<end>")
    assert len(encoded) == 5
    batch = PairBatch(np.array([encoded]), np.array([5]), np.array([0]))
    completion = [*ids(prompt, "ü"), end]
    shown = completions_of(batch, np.array([[completion]]), np.array([[3]]), {"format": [[0.0]]})
    (row,) = completion_rows(1, prompt, shown, {"format": 1.0})
    assert (row["prompt"], row["completions"]) == ("für?", ["ü<end>"])


def test_rows_of_arrays_that_are_split_over_devices(prompt: Prompt) -> None:
    # Eight prompts on two replicas of four devices: the first shard is the first half, not a copy of everything.
    devices = np.array(jax.devices()).reshape(2, 4)
    place = NamedSharding(Mesh(devices, ("data", "fsdp")), P("data"))
    one, zero = ids(prompt, "1")[0], ids(prompt, "0")[0]
    answers = np.array([one, zero] * 4)
    tokens = np.stack([np.stack([answers] * 2, axis=1), np.full((8, 2), prompt.end_id)], axis=2)
    batch: PairBatch[np.ndarray] = PairBatch(np.arange(8)[:, None] + one, np.ones(8, np.int32), np.array([1, 0] * 4))
    earned = np.arange(16).reshape(8, 2)
    shown = completions_of(batch, tokens, np.full((8, 2), 2), {"mine": earned}, place)
    rows = completion_rows(1, prompt, shown, {"mine": 1.0})
    assert [(row["label"], row["reward"]) for row in rows] == [(1, [0, 1]), (0, [2, 3])]
    assert [row["completions"] for row in rows] == [["1<|im_end|>"] * 2, ["0<|im_end|>"] * 2]


def row_of(label: int, *earned: tuple[str, float]) -> dict[str, Any]:
    return {"label": label, "completions": [text for text, _ in earned], "reward": [reward for _, reward in earned]}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        # The highest reward first, and of equal ones the most frequent.
        (
            row_of(1, ("0", 0), ("Yes", 0), ("1<|im_end|>", 2), ("Yes", 0), ("1<|im_end|>", 2), ("1<|im_end|>", 2)),
            "label 1: '1<|im_end|>' 2 (x3), 'Yes' 0 (x2), '0' 0",
        ),
        (row_of(0, ("1", 0.05), ("0", 3.05)), "label 0: '0' 3.05, '1' 0.05"),
        # The same text with another reward is another part: a reward may depend on more than the text.
        (row_of(0, ("0", 1), ("0", 2), ("0", 1)), "label 0: '0' 2, '0' 1 (x2)"),
        # One line whatever the completion holds.
        (row_of(1, ("\n\t'", 0.3333)), 'label 1: "\\n\\t\'" 0.3333'),
        (row_of(1, ("a", -1), ("b", -0.5)), "label 1: 'b' -0.5, 'a' -1"),
    ],
)
def test_a_row_in_a_line(row: dict[str, Any], line: str) -> None:
    assert describe(row) == line


def test_the_docstring_of_a_line() -> None:
    row = row_of(1, *[("1<|im_end|>", 2.0)] * 6, *[("Yes", 0.0)] * 2)
    assert describe(row) in str(describe.__doc__)


WHAT = (
    "frac_reward_zero_std has been above 0.9 for 5 rows: in nearly every group all completions earn the same reward, "
    "so their advantages are zero and next to nothing is learnt"
)
SETTLED = (
    f"{WHAT}. The model has settled on its answers: begin again with warmup.method=expected or supervised, or give "
    "warmup.entropy a value (docs/warmup.md)"
)
DONE = f"{WHAT}. The answers are right: warmup is done; use fewer steps, or harder pairs"
NO_FORMAT = (
    f"{WHAT}. Almost no completion has the format: look at completions.jsonl, raise warmup.temperature or "
    "warmup.group_size, or begin with warmup.method=supervised"
)


def said(fractions: list[float], accuracy: float = 0.5, format_rate: float = 1.0) -> list[str | None]:
    flat = FlatReward()
    return [
        flat.add({"frac_reward_zero_std": fraction, "accuracy": accuracy, "format_rate": format_rate})
        for fraction in fractions
    ]


def test_a_flat_reward_is_told_once_after_five_rows() -> None:
    assert said([0.95] * 12) == [None] * 4 + [SETTLED] + [None] * 7


def test_a_flat_reward_is_told_again_once_it_was_lively() -> None:
    assert said([1.0] * 4 + [0.5] + [1.0] * 4) == [None] * 9
    assert said([1.0] * 7 + [0.5] + [1.0] * 6) == [None] * 4 + [SETTLED] + [None] * 7 + [SETTLED, None]


def test_nine_tenths_are_not_flat() -> None:
    assert said([0.9] * 8) == [None] * 8
    # So does the number that a step reports.
    assert said([jnp.float32(0.9)] * 8) == [None] * 8
    assert said([jax.device_get(jnp.float32(0.9))] * 8) == [None] * 8
    assert said([0.9001] * 5)[-1] == SETTLED


@pytest.mark.parametrize(
    ("accuracy", "format_rate", "told"),
    [
        (0.95, 0.97, DONE),
        (0.9, 0.97, SETTLED),
        (0.0, 0.05, NO_FORMAT),
        (0.0, 0.1, SETTLED),
        # One answer to everything.
        (0.5, 1.0, SETTLED),
    ],
)
def test_what_a_flat_reward_means(accuracy: float, format_rate: float, told: str) -> None:
    assert said([1.0] * 5, accuracy, format_rate)[-1] == told
