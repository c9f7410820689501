"""What a step measures is read from the device once, after the next step was started or where a row is due."""

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from _small_decoder import small_config
from meshes import mesh_of

from prorank_jax.config_file import parse_config
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.runtime.metrics import read_metrics
from prorank_jax.runtime.training import TrainState
from prorank_jax.scoring import stage as score_stage
from prorank_jax.storage import place
from prorank_jax.warmup import stage as warmup_stage

NAMES = ("loss", "kl", "reward", "grad_norm", "frac_reward_zero_std", "accuracy", "format_rate")
STEPS, LOG_EVERY = 7, 3


class Read:
    """A value on a device, which notes when it is read, however that is done."""

    def __init__(self, events: list[tuple[str, int, str]], step: int, name: str) -> None:
        self._note = lambda: events.append(("read", step, name))

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        self._note()
        return np.asarray(0.5, np.float32)

    def __float__(self) -> float:
        self._note()
        return 0.5


@pytest.mark.parametrize("stage", ["warmup", "score"])
def test_metrics_are_read_once_a_step(stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    learning = {"steps": STEPS, "log_every": LOG_EVERY, "optimizer": {"learning_rate": 1e-4}}
    run = parse_config(
        {
            "model": {"base": "somewhere"},
            "data": {"path": "somewhere", "workers": 1},
            "warmup": {"prompts_per_step": 2, "show_completions_every": 0, "beta": 0.1, **learning},
            "score": {"queries_per_step": 2, **learning},
        }
    )
    module: Any = {"warmup": warmup_stage, "score": score_stage}[stage]
    events: list[tuple[str, int, str]] = []
    started = Counter[str]()

    def step(state: TrainState, *_: Any) -> tuple[Any, ...]:
        started["step"] += 1
        events.append(("start", started["step"], ""))
        metrics = {name: Read(events, started["step"], name) for name in NAMES}
        return (state, metrics, None) if stage == "warmup" else (state, metrics)

    rows = np.ones((2, 4), np.int32)
    monkeypatch.setattr(module, "make_step", lambda *_: step)
    monkeypatch.setattr(module, "open_state", lambda *_, **__: (TrainState({}, ()), 0))
    monkeypatch.setattr(Checkpoints, "save", lambda *_: None)
    if stage == "warmup":
        monkeypatch.setattr(module, "pair_batch", lambda *_: PairBatch(rows, rows[:, 0], rows[:, 0]))
    else:
        monkeypatch.setattr(module, "_encoded", lambda *_: SimpleNamespace(prompts=None, tokens=8))
        for name, made in {"split": [], "choose_layouts": [None], "first_fit": 0, "group_batch": rows}.items():
            monkeypatch.setattr(module, name, lambda *_, made=made, **__: made)
    prompt = SimpleNamespace(answer_ids=(1, 2), end_id=3, pad_id=0, max_length=8)
    preemption = SimpleNamespace(training=nullcontext, reached=lambda _: False)
    arguments: list[Any] = [run, Decoder(small_config(61, tied=True)), {}, prompt, [0] * 99]
    arguments += [None] * (stage == "score") + [mesh_of(1, 1), place(str(tmp_path / stage)), preemption]
    getattr(module, f"train_{stage}")(*arguments)

    reads = Counter(event for event in events if event[0] == "read")
    assert reads == {("read", number, name): 1 for number in range(1, STEPS + 1) for name in NAMES}
    for number in range(1, STEPS):
        read, after = (events.index(event) for event in (("read", number, "loss"), ("start", number + 1, "")))
        # The device need not wait for who looks, but where a row is written.
        assert (read < after) == (number % LOG_EVERY == 0)
    kept = read_metrics(tmp_path / stage / "metrics.jsonl")
    assert [row["step"] for row in kept] == [3, 6, 7]
    assert all(row[name] == 0.5 for row in kept for name in NAMES)
