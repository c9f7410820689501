import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from prorank_jax import doctor
from prorank_jax.doctor import Check, describe, diagnose


class _Distribution:
    version = "9.9"

    def __init__(self, requires: list[str]):
        self.requires = requires


@pytest.fixture
def requires(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_requirements(*lines: str) -> None:
        real = importlib.metadata.distribution

        def distribution(name: str) -> importlib.metadata.Distribution | _Distribution:
            return _Distribution(list(lines)) if name == "prorank_jax" else real(name)

        monkeypatch.setattr(importlib.metadata, "distribution", distribution)

    return set_requirements


def _find(name: str) -> Check:
    return {check.name: check for check in diagnose()}[name]


def test_a_machine_with_everything_is_well(requires: Callable[..., None]) -> None:
    requires("numpy>=1.0", "jax>=0.10,<99")
    checks = diagnose()
    assert all(check.ok for check in checks)
    names = [check.name for check in checks]
    assert names[:4] == ["python", "prorank_jax", "numpy", "jax"]
    found = {check.name: check.detail for check in checks}
    assert found["prorank_jax"] == "9.9"
    assert found["jax"] == jax.__version__
    assert found["jax devices"] == "cpu: 8 x cpu"
    assert int(found["cores"]) >= 1


def test_a_missing_package_is_not_ok(requires: Callable[..., None]) -> None:
    requires("no-such-package>=2,<3")
    expected = Check("no-such-package", False, "not installed", "pip install 'no-such-package<3,>=2'")
    assert _find("no-such-package") == expected


def test_a_package_of_another_version_is_not_ok(requires: Callable[..., None]) -> None:
    requires("jax>=99")
    assert _find("jax") == Check("jax", False, f"{jax.__version__} does not fit", "pip install 'jax>=99'")


def test_extras_are_not_needed(requires: Callable[..., None]) -> None:
    requires('no-such-package; extra == "tpu"', 'other-missing; python_version < "3"')
    names = [check.name for check in diagnose()]
    assert "no-such-package" not in names
    assert "other-missing" not in names


def test_not_installed_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", nothing)
    assert _find("prorank_jax") == Check("prorank_jax", False, "not installed", "in the clone, run: pip install -e .")


def test_optional_packages_are_only_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    check = _find("libtpu (optional)")
    assert check.ok
    assert check.remedy == "only for running on a TPU and `prorank plan`: pip install 'prorank_jax[tpu]'"


def test_a_backend_that_does_not_start_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Unable to initialize backend 'tpu':\n  The TPU is already in use by process 7")

    monkeypatch.setattr(jax, "devices", fail)
    check = _find("jax devices")
    assert not check.ok
    assert check.detail == "Unable to initialize backend 'tpu': The TPU is already in use by process 7"


def test_the_hub_is_only_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    # tests/conftest.py fails whatever opens a connection.
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert _find("hugging face hub").detail == "offline: models come from folders and the cache only"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert _find("hugging face hub").detail.startswith("downloads allowed (not tried), from https://")


@pytest.mark.parametrize("closed", ["home", "home/hub"])
def test_folders_that_cannot_be_written_are_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed: str) -> None:
    """The nearest folder that exists decides: the cache itself, or where it would be made."""
    (tmp_path / closed).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home" / "hub"))
    assert _find("hub cache").remedy == ""
    # The tests may run as root, whom no permission stops.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / closed)
    assert _find("current folder") == Check("current folder", True, str(tmp_path))
    check = _find("hub cache")
    assert check.ok
    assert check.detail == f"{tmp_path}/home/hub is not writable"
    assert check.remedy == "set HF_HOME to a folder that you may write to"


def test_little_memory_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**19}.__getitem__)
    assert _find("memory") == Check("memory", True, "2.0 GiB", "`prorank demo` needs up to 4 GiB")


def test_an_old_python_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert not _find("python").ok


def test_the_lines() -> None:
    checks = [
        Check("python", True, "3.11.7"),
        Check("libtpu (optional)", True, "not installed", "only for a TPU"),
        Check("jax", False, "not installed", "pip install 'jax'"),
    ]
    assert describe(checks).splitlines() == [
        "ok       python                   3.11.7",
        "note     libtpu (optional)        not installed; only for a TPU",
        "MISSING  jax                      not installed; pip install 'jax'",
    ]
