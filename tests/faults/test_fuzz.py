"""Readers of others' files: some hundred cases each in CI, 20,000 and more in the long run, and all found before."""

from pathlib import Path

import pytest

from . import fuzz
from .fuzz import CORPUS, TARGETS, check, load_case, run

FOUND = sorted(CORPUS.glob("*/*.json"))


@pytest.mark.parametrize("name", TARGETS)
def test_only_our_own_errors_come_out(name: str, tmp_path: Path, minutes: float, fault_seed: int) -> None:
    found = run(name, 20_000 if minutes else 150, fault_seed, tmp_path)
    print(f"{name}: {found}")
    # Cases that are all refused at their first byte would show little.
    assert found["accepted"] > found["cases"] / 50


@pytest.mark.parametrize("path", FOUND, ids=[f"{path.parent.name}-{path.stem}" for path in FOUND])
def test_a_case_that_was_found_stays_mended(path: Path, tmp_path: Path) -> None:
    check(TARGETS[path.parent.name], load_case(path), tmp_path)


def test_a_finding_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        if b"9" in (folder / "rows.jsonl").read_bytes():
            raise KeyError("rows")

    cases = TARGETS["rows"].cases.filter(lambda case: "rows.jsonl" in case)
    monkeypatch.setitem(fuzz.TARGETS, "rows", fuzz.Target(cases, broken))
    with pytest.raises(KeyError):
        run("rows", 500, 0, tmp_path)
    assert b"9" in load_case(tmp_path / "found-rows.json")["rows.jsonl"]
