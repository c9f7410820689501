"""What is compiled is kept for the next process where that is asked for, and nobody chose otherwise."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys, jax, prorank_jax
jax.jit(lambda x: x + 1)(1.0)  # JAX decides with the first program whether it keeps any
if sys.argv[1] != "no":
    prorank_jax.keep_compiled()
if sys.argv[1] != "begun":
    reranker = prorank_jax.Reranker.from_pretrained("builtin:tiny")
    [hit] = reranker.rank("fish?", ["It serves fish."])
print(jax.config.values["jax_compilation_cache_dir"], jax.config.values["jax_compilation_cache_max_size"])
"""


def told_by(folder: Path, asked: str, chosen: str | None = None) -> str:
    """The folder that a process keeps programs in, and how many bytes of them."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment["PRORANK_CACHE"] = str(folder / "cache")
    if chosen:
        environment["JAX_COMPILATION_CACHE_DIR"] = chosen
    command = [sys.executable, "-W", "error", "-c", PROGRAM, asked]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_a_process_that_asks_keeps_its_programs(tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "compiled"
    kept.mkdir(parents=True)
    # What a killed process leaves, with which JAX would keep no other program; one may still be being written.
    for name, age in (("old", 3600), ("new", 0)):
        (kept / f"{name}-cache").write_bytes(b"half")
        os.utime(kept / f"{name}-cache", (time.time() - age,) * 2)
    assert told_by(tmp_path, "begun") == f"{kept} {2 * 1024**3}"
    assert [path.name for path in kept.iterdir()] == ["new-cache"]
    (kept / "new-cache").unlink()
    assert told_by(tmp_path, "kept") == f"{kept} {2 * 1024**3}"
    programs = {path.name.removesuffix("-cache") for path in kept.glob("*-cache")}
    assert len(programs) >= 2
    assert {path.name.removesuffix("-atime") for path in kept.glob("*-atime")} == programs


@pytest.mark.parametrize(("asked", "chosen"), [("no", None), ("kept", "elsewhere")])
def test_a_process_keeps_nothing_where_nobody_asks_or_another_folder_was_chosen(
    tmp_path: Path, asked: str, chosen: str | None
) -> None:
    folder = chosen and str(tmp_path / chosen)
    assert told_by(tmp_path, asked, folder) == f"{folder} -1"
    assert not (tmp_path / "cache").exists()
