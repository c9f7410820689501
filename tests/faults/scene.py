"""The commands of a small project, one after the other: training, export of a step, evaluation.

What they leave behind is compared byte for byte, but for what a clock decides.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from prorank_jax.cache import cache_folder
from prorank_jax.runtime.metrics import TIME_FIELDS, read_metrics

PRORANK = Path(sys.executable).with_name("prorank")
STAGES = ("warmup", "score")
STEPS = 40
EVERY = 8
"""Steps between two checkpoints."""

LONG = pytest.mark.long
"""On a test that takes too long for CI."""

Command = list[str | Path]


@dataclass(frozen=True)
class Scene:
    """A configuration, and the folder in which everything is made."""

    config: Path
    collection: Path
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def cache(self) -> Path:
        """Next to the folder: the cache of all tests, but for the scores, which are computed in each scene."""
        folder = self.folder.with_name(f"{self.folder.name}-cache")
        folder.mkdir(exist_ok=True)
        for shared in ("collections", "bm25", "numba"):
            (cache_folder() / shared).mkdir(parents=True, exist_ok=True)
            if not (folder / shared).is_symlink():
                (folder / shared).symlink_to(cache_folder() / shared)
        return folder

    @property
    def commands(self) -> dict[str, Command]:
        evaluate: Command = [PRORANK, "evaluate", self.run / "export", "--data", self.collection, "--depth", "12"]
        return {
            "train": [PRORANK, "train", self.config, "--workdir", self.run],
            "export": [PRORANK, "export", self.run / "warmup", self.folder / "exported"],
            "evaluate": ["env", f"PRORANK_CACHE={self.cache}", *evaluate],
        }

    def outcome(self) -> dict[str, Any]:
        """What is left behind: each file's bytes, and the rows of metrics without what a clock decides."""
        found: dict[str, Any] = {}
        for folder in (self.run / "export", self.run / "evaluation", self.folder / "exported"):
            paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
            found |= {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}
        for stage in STAGES:
            rows = read_metrics(self.run / stage / "metrics.jsonl")
            found[stage] = [{name: row[name] for name in row if name not in TIME_FIELDS} for row in rows]
        return found

    def undisturbed(self) -> dict[str, Any]:
        """The outcome of all commands."""
        for command in self.commands.values():
            subprocess.run(command, check=True, capture_output=True)
        return self.outcome()


def make_scene(model: Path, collection: Path, folder: Path) -> Scene:
    """A scene in a folder, which is made, of a model and of the generated world's collections."""
    often = {"steps": STEPS, "log_every": 1, "checkpoint_every": EVERY, "optimizer": {"learning_rate": 1e-3}}
    tree = {
        "seed": 5,
        "model": {"base": str(model)},
        "prompt": {"max_length": 112},
        "data": {"path": str(collection / "train"), "depth": 12},
        "warmup": {"prompts_per_step": 8, "group_size": 4, "max_new_tokens": 3, "beta": 0.1, **often},
        "score": {"queries_per_step": 8, "documents_per_query": 3, **often},
    }
    folder.mkdir(parents=True)
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(tree))
    return Scene(config, collection / "test", folder)
