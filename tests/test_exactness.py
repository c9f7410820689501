"""One configuration and seed give one result, bit for bit, whatever is beside them."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from prorank_jax.config_file import parse_config
from prorank_jax.evaluation.development import METRIC
from prorank_jax.model.decoder import Decoder
from prorank_jax.model.hf import read_folder
from prorank_jax.run_folder import checkpoints
from prorank_jax.runtime.metrics import TIME_FIELDS, read_metrics
from prorank_jax.train import train

pytestmark = pytest.mark.usefixtures("fast_compilation")

STEPS = 8
DEV = {"every": 4, "queries": 4, "depth": 5, "split": "test"}


@pytest.fixture(scope="module")
def results(tiny_model: Path, tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Weights after the last step of each stage and rows of metrics, of runs that differ in what must not matter."""
    often = {"steps": STEPS, "log_every": 1, "checkpoint_every": 4, "optimizer": {"learning_rate": 1e-2}}
    shapes = jax.eval_shape(Decoder(read_folder(tiny_model).config).init, jax.random.key(0))

    def result(seed: int = 1, dev: dict[str, Any] | None = None, warmup: Any = None, **data: int) -> dict[str, Any]:
        tree = {
            "seed": seed,
            "model": {"base": str(tiny_model)},
            "prompt": {"max_length": 112},
            "data": {"path": str(tiny_collection / "train"), "depth": 12, **data},
            "warmup": {"prompts_per_step": 8, "group_size": 4, "max_new_tokens": 2, **(warmup or {}), **often},
            "score": {"queries_per_step": 8, "documents_per_query": 3, "dev": dev, **often},
        }
        run = tmp_path_factory.mktemp("runs") / "run"
        train(parse_config(tree), run)
        found: dict[str, Any] = {}
        for stage in ("warmup", "score"):
            found[stage] = jax.tree.leaves(checkpoints(run, stage).restore_params(STEPS, shapes))
            rows = [row for row in read_metrics(run / stage / "metrics.jsonl") if row["step"]]
            found[f"{stage} rows"] = [
                {name: row[name] for name in row if name not in (*TIME_FIELDS, METRIC)} for row in rows
            ]
        return found

    return {
        "one worker": result(workers=1),
        "three workers": result(workers=3),
        "seven workers, measured": result(
            workers=7, dev=DEV | {"path": str(tiny_collection / "test")}, warmup={"show_completions_every": 1}
        ),
        "another seed": result(seed=2),
    }


@pytest.mark.parametrize("other", ["three workers", "seven workers, measured"])
@pytest.mark.parametrize("stage", ["warmup", "score"])
def test_workers_and_measurements_change_nothing(results: dict[str, Any], stage: str, other: str) -> None:
    ours, theirs = results["one worker"], results[other]
    for one, two in zip(ours[stage], theirs[stage], strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    assert json.dumps(ours[f"{stage} rows"]) == json.dumps(theirs[f"{stage} rows"])


def test_another_seed_changes_everything(results: dict[str, Any]) -> None:
    ours, theirs = results["one worker"], results["another seed"]
    assert ours["score rows"] != theirs["score rows"]
    assert any(
        np.asarray(one).tobytes() != np.asarray(two).tobytes()
        for one, two in zip(ours["score"], theirs["score"], strict=True)
    )
