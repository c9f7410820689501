"""What is compiled is kept for the next process, where nobody chose otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import jax
from prorank_jax import Reranker
reranker = Reranker.from_pretrained("builtin:tiny")
[hit] = reranker.rank("fish?", ["It serves fish."])
print(jax.config.values["jax_compilation_cache_dir"])
"""


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_a_process_keeps_what_it_compiles(tmp_path: Path, chosen: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment["PRORANK_CACHE"] = str(tmp_path / "cache")
    if chosen:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / chosen)
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()
    assert Path(told) == tmp_path / (chosen or "cache/compiled")
    assert (tmp_path / "cache" / "compiled").exists() == (chosen is None)
    if chosen is None:
        assert len(list(Path(told).iterdir())) >= 2
