"""What the warmup refuses to begin with, where it stops by itself, and what it shows on the way."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from prorank_jax.config import GrpoConfig, PromptConfig, RunConfig, SupervisedConfig
from prorank_jax.config_file import parse_config
from prorank_jax.data.beir import read_beir
from prorank_jax.data.candidates import open_candidates
from prorank_jax.data.examples import JudgedSource, Selection
from prorank_jax.data.loader import pair_batch
from prorank_jax.data.stream import Pairs, pairs
from prorank_jax.errors import InputError
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import Prompt, load_prompt
from prorank_jax.reranker import Reranker
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.runtime.metrics import read_metrics
from prorank_jax.runtime.preemption import Preemption
from prorank_jax.train import train
from prorank_jax.warmup import progress
from prorank_jax.warmup.progress import describe
from prorank_jax.warmup.stage import COMPLETIONS, check_warmup, train_warmup

pytestmark = pytest.mark.usefixtures("fast_compilation")


def mesh_of(data: int, fsdp: int) -> Mesh:
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


# What is refused.


def check(
    mesh: Mesh, max_length: int = 100, max_positions: int = 2**31 - 1, method: str = "grpo", **fields: Any
) -> None:
    kind = GrpoConfig if method == "grpo" else SupervisedConfig
    check_warmup(kind.model_validate({"steps": 1, "method": method, **fields}), max_length, max_positions, mesh)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"prompts_per_step": 12},
            "config: warmup.prompts_per_step=12 does not divide over 8 devices; the nearest is 16",
        ),
        (
            {"prompts_per_step": 12, "method": "supervised"},
            "config: warmup.prompts_per_step=12 does not divide over 8 devices; the nearest is 16",
        ),
        # Two divides the whole batch, and not what a device has of it.
        (
            {"prompts_per_step": 24, "accumulation": 2},
            "config: warmup.prompts_per_step=24 does not divide over 8 devices x 2 parts of warmup.accumulation; "
            "the nearest is 32",
        ),
        (
            {"prompts_per_step": 32, "accumulation": 8},
            "config: warmup.prompts_per_step=32 does not divide over 8 devices x 8 parts of warmup.accumulation; "
            "the nearest is 64",
        ),
        (
            {"max_length": 125, "max_positions": 128, "max_new_tokens": 4},
            "config: prompt.max_length=125: the model has 128 positions, of which warmup.max_new_tokens takes 4; "
            "use at most 124",
        ),
        (
            {"rewards": {"own_absent:short": 1}},
            "config: warmup.rewards.own_absent:short: no module own_absent; put own_absent.py into the working "
            "directory, or install it",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check(mesh_of(8, 1), **given)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "given",
    [
        {"prompts_per_step": 24, "accumulation": 3},
        {"prompts_per_step": 8},
        {"max_length": 124, "max_positions": 128, "max_new_tokens": 4},
        {"rewards": {"relevance": 1}},
        {"prompts_per_step": 8, "method": "supervised"},
    ],
)
def test_what_just_fits_is_not_refused(given: dict[str, Any]) -> None:
    check(mesh_of(8, 1), **given)


def test_the_parts_are_of_a_devices_prompts() -> None:
    # Each of eight devices has three of the prompts, however they stand in the mesh.
    check(mesh_of(2, 4), prompts_per_step=24, accumulation=3)
    with pytest.raises(InputError, match="over 8 devices x 4 parts of warmup.accumulation; the nearest is 32"):
        check(mesh_of(2, 4), prompts_per_step=24, accumulation=4)


# Short runs.


ODD = """\
import jax.numpy as jnp


def odd(tokens_PxGxT, lengths_PxG, labels_P, answers):
    first = tokens_PxGxT[:, :, 0]
    usual = (first == answers.negative) | (first == answers.positive) | (first == answers.end)
    return jnp.where(usual, 0.0, {value})
"""
STEPS = 10


class Parts(NamedTuple):
    """What a stage is made of, read once."""

    settings: dict[str, Any]
    decoder: Decoder
    params: Params
    prompt: Prompt
    pairs: Pairs


@pytest.fixture(scope="module")
def parts(tiny_model: Path, tiny_collection: Path) -> Parts:
    settings = {
        "seed": 3,
        "model": {"base": str(tiny_model)},
        "prompt": {"max_length": 112},
        "data": {"path": str(tiny_collection / "train"), "depth": 12},
    }
    pretrained = load_pretrained(tiny_model)
    prompt = load_prompt(pretrained, PromptConfig(max_length=112), "tiny")
    collection = read_beir(tiny_collection / "train", "train")
    source = JudgedSource.from_collection(collection, open_candidates(collection, "bm25", 12), Selection())
    return Parts(settings, Decoder(pretrained.config), pretrained.params, prompt, pairs([source], [1.0], seed=5))


def settings(parts: Parts, **warmup: Any) -> RunConfig:
    often = {"steps": STEPS, "prompts_per_step": 16, "log_every": 1, "checkpoint_every": 1, "keep_checkpoints": STEPS}
    return parse_config(parts.settings | {"warmup": often | {"optimizer": {"learning_rate": 1e-3}} | warmup})


def run_stage(parts: Parts, folder: Path, **warmup: Any) -> Params:
    """The stage alone, on one device."""
    _, decoder, params, prompt, pairs = parts
    params = jax.tree.map(jnp.copy, params)  # the stage uses them up
    run = settings(parts, **warmup)
    return train_warmup(run, decoder, params, prompt, pairs, mesh_of(1, 1), folder, Preemption()).params


def saved(parts: Parts, folder: Path, step: int) -> Params:
    """The parameters of a checkpoint."""
    shapes = jax.eval_shape(lambda: parts.params)
    return Checkpoints(folder / "checkpoints", 1).restore_params(step, shapes)


def steps_of(folder: Path) -> list[int]:
    return Checkpoints(folder / "checkpoints", 1).steps()


def finite(tree: Any) -> bool:
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def test_completions_are_shown_and_a_reward_that_is_not_a_number_stops_the_run(
    parts: Parts, working_directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (working_directory / "own_counted.py").write_text(ODD.format(value="1.0"))
    (working_directory / "own_spoilt.py").write_text(ODD.format(value="jnp.nan"))
    weights = {"format": 1, "relevance": 2}
    # Hot enough that an unusual first token comes within the run, and not in its first two steps.
    sampled = {"group_size": 4, "max_new_tokens": 3, "show_completions_every": 1, "temperature": 1.4}
    good, spoilt = working_directory / "good", working_directory / "spoilt"
    # Every reward is a flat one, from the fourth row on.
    monkeypatch.setattr(progress, "_FLAT", -1.0)
    monkeypatch.setattr(progress, "_PATIENCE", 4)
    run_stage(parts, good, rewards=weights | {"own_counted:odd": 0.5}, **sampled)
    printed = capsys.readouterr()
    assert printed.out == ""

    rows, shown = read_metrics(good / "metrics.jsonl"), read_metrics(good / COMPLETIONS)
    check_shown(parts, rows, shown, printed.err.splitlines())

    # The same run with another value of that reward, from the first step on: the same until such a completion comes.
    bad = next(row["step"] for row in rows if row["rewards/odd/mean"] > 0)
    assert 3 <= bad < STEPS
    shutil.copytree(good, spoilt)
    for step in range(2, STEPS + 1):
        shutil.rmtree(spoilt / "checkpoints" / str(step))
    with pytest.raises(InputError) as caught:
        run_stage(parts, spoilt, rewards=weights | {"own_spoilt:odd": 0.5}, **sampled)
    assert str(caught.value) == (
        f"warmup: rewards/odd/mean is nan at step {bad}; step {bad - 1} is the last checkpoint; mend that reward"
    )
    assert steps_of(spoilt) == list(range(1, bad))
    restored, expected = saved(parts, spoilt, bad - 1), saved(parts, good, bad - 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), restored, expected)
    # Nothing is kept of the bad step.
    assert [row["step"] for row in read_metrics(spoilt / "metrics.jsonl")] == list(range(1, bad))
    assert read_metrics(spoilt / COMPLETIONS) == [row for row in shown if row["step"] < bad]


def check_shown(parts: Parts, rows: list[Any], shown: list[Any], lines: list[str]) -> None:
    """Two rows a step, which say what was asked, answered and earned; and the same rows as lines."""
    assert [row["step"] for row in shown] == [step for step in range(1, STEPS + 1) for _ in range(2)]
    assert [row["label"] for row in shown] == [1, 0] * STEPS
    for step in range(1, STEPS + 1):
        batch = pair_batch(parts.pairs, parts.prompt, range(16 * (step - 1), 16 * step))
        for p in range(2):
            asked = parts.prompt.tokenizer.decode(batch.tokens_PxL[p, : batch.lengths_P[p]])
            assert shown[2 * step - 2 + p]["prompt"] == asked
    answers = {"0<|im_end|>": 0, "1<|im_end|>": 1}
    for row in shown:
        assert len(row["completions"]) == len(row["reward"]) == 4
        label, texts, earned = row["label"], row["completions"], row["rewards"]
        assert earned.keys() == {"format", "relevance", "odd"}
        assert earned["format"] == [float(text in answers) for text in texts]
        assert earned["relevance"] == [float(answers.get(text) == label) for text in texts]
        total = np.array(earned["format"]) + 2.0 * np.array(earned["relevance"]) + 0.5 * np.array(earned["odd"])
        np.testing.assert_allclose(row["reward"], total)
    assert len({text for row in shown for text in row["completions"]}) > 5
    expected = []
    for step in range(1, STEPS + 1):
        expected += [f"  {describe(row)}" for row in shown if row["step"] == step]
        expected.append(f"warmup {step}/{STEPS}  reward {rows[step - 1]['reward']:.4g}")
        if step == 4:
            expected.append("warmup 4: frac_reward_zero_std has been above -1.0 for 4 rows: ")
    assert [line[: len(want)] for line, want in zip(lines, expected, strict=True)] == expected
    assert all(line == want for line, want in zip(lines, expected, strict=True) if want.startswith("  "))


def test_an_absurd_learning_rate_stops_the_run_behind_its_last_good_checkpoint(parts: Parts, tmp_path: Path) -> None:
    # A good stage of two steps, which goes on with a learning rate that no float survives: the third step spoils the
    # parameters, and the fourth sees it.
    run_stage(parts, tmp_path, method="supervised", steps=2, checkpoint_every=2, log_every=2)
    good = saved(parts, tmp_path, 2)
    assert finite(good)
    absurd = {"learning_rate": 1e30, "warmup_fraction": 0.0}
    # A step that would be saved, one that would be logged, and one of which nothing would be kept.
    for checkpoint_every, log_every in ((2, 100), (100, 4), (100, 100)):
        often = {"checkpoint_every": checkpoint_every, "log_every": log_every}
        with pytest.raises(InputError) as caught:
            run_stage(parts, tmp_path, method="supervised", steps=8, optimizer=absurd, **often)
        message = str(caught.value)
        # All metrics are spoilt, the accuracy too, which comes first in the alphabet.
        assert message == (
            "warmup: loss is nan at step 4; step 2 is the last checkpoint; "
            "lower warmup.optimizer.learning_rate or max_grad_norm, or compute in float32"
        )
        assert steps_of(tmp_path) == [2]
        jax.tree.map(np.testing.assert_array_equal, saved(parts, tmp_path, 2), good)
        # No row either, but that of the good stage.
        assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2]


def test_a_supervised_warmup_runs_and_exports(parts: Parts, tmp_path: Path) -> None:
    trained = train(settings(parts, method="supervised", checkpoint_every=STEPS), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "warmup" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    names = {"step", "loss", "accuracy", "format_rate", "grad_norm", "tokens_per_second", "seconds"}
    assert {frozenset(row) for row in rows} == {frozenset(names)}
    assert np.mean([row["loss"] for row in rows[-3:]]) < 0.8 * rows[0]["loss"]
    # Nothing is sampled.
    shown = tmp_path / "run" / "warmup" / COMPLETIONS
    assert not shown.exists() or read_metrics(shown) == []
    assert Reranker.from_pretrained(trained.export).max_length == 112
    exported = load_pretrained(trained.export).params
    jax.tree.map(np.testing.assert_array_equal, exported, jax.device_get(trained.final))
    jax.tree.map(np.testing.assert_array_equal, saved(parts, tmp_path / "run" / "warmup", STEPS), exported)
