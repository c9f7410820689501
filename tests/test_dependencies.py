"""The bounds in setup.py, the lock that CI installs from, and the audit of both."""

import os
import re
import subprocess
import sys
from pathlib import Path

import dependencies
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / ".ci" / "lock-3.11.txt"

# Knows flaws by the service that it is told to ask: lines of SERVICE NAME==VERSION FLAW.
PIP_AUDIT = f"""\
#!{sys.executable}
import os, pathlib, sys
options = dict(zip(sys.argv, sys.argv[1:]))
asked = set(pathlib.Path(options["-r"]).read_text().split())
known = [line.split() for line in os.environ["KNOWN"].splitlines()]
found = [line for line in known if line[0] == options["-s"] and line[1] in asked]
print(*found, "--strict" in sys.argv)
sys.exit(1 if found else "no route to the service" if options["-s"] not in {{line[0] for line in known}} else 0)
"""
PROBE = "jinja2==3.1.5 CVE-2025-27516"


def audit(folder: Path, lock: Path, known: str = "") -> tuple[int, str]:
    """The exit status and the output of `.ci/audit`, with a stand-in for pip-audit."""
    stand_in = folder / "pip-audit"
    stand_in.write_text(PIP_AUDIT)
    stand_in.chmod(0o755)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PIP_AUDIT": str(stand_in), "KNOWN": known}
    done = subprocess.run([ROOT / ".ci" / "audit", lock], env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def with_version(folder: Path, name: str, version: str) -> Path:
    """The lock with one version changed."""
    text, changed = re.subn(rf"^{name}==.*$", f"{name}=={version}", LOCK.read_text(), flags=re.MULTILINE)
    assert changed == 1
    (folder / "lock.txt").write_text(text)
    return folder / "lock.txt"


def test_every_requirement_has_one_lower_bound():
    bounds = dependencies.lower_bounds(dependencies.declared())
    assert bounds["jinja2"] == "3.1.6"  # the release that closed the sandbox
    assert bounds["torch"] == "2.13.0"
    names = {canonicalize_name(Requirement(line).name) for lines in dependencies.declared().values() for line in lines}
    assert bounds.keys() == names


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["fastapi"], "setup.py: fastapi: no lower bound; write NAME>=VERSION or NAME==VERSION"),
        (["jax<0.12"], "setup.py: jax<0.12: no lower bound"),
        (["jax>=0.10,<0.12", "jax[tpu]>=0.10.2,<0.12"], "jax[tpu]>=0.10.2,<0.12: the bound is 0.10 elsewhere"),
    ],
)
def test_a_requirement_without_one_is_refused(lines: list[str], message: str):
    with pytest.raises(SystemExit, match=re.escape(message)):
        dependencies.lower_bounds({"": lines})


def test_the_lowest_versions_are_constraints_without_extras():
    printed = subprocess.check_output([sys.executable, ROOT / ".ci" / "dependencies.py", "lowest"], text=True)
    lines = printed.splitlines()
    assert "torch==2.13.0" in lines and "pystemmer==3.1.0" in lines
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in lines)


def test_the_lock_fits_the_bounds():
    locked = dependencies.read_lock(LOCK)
    assert len(locked) > 100
    declared = dependencies.declared()
    for requirement in map(Requirement, [*declared[""], *declared["test"], *declared["elsewhere"]]):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version} is locked; make the lock anew"


def test_what_only_the_tests_need_is_not_installed_with_the_package():
    core = {canonicalize_name(Requirement(line).name) for line in dependencies.declared()[""]}
    reference = {"torch", "trl", "sentence-transformers", "accelerate", "datasets", "tensorflow"}
    assert not core & {*reference, "gcsfs", "pytest", "mypy", "ruff"}


def test_our_versions_have_no_known_flaw():
    assert list(dependencies.known(LOCK)) == []
    # Each name is one that is locked or declared: nothing in the list is out of date or misspelt.
    named = [name for name, _, _ in dependencies.advisories()]
    everything = dependencies.read_lock(LOCK) | dependencies.lower_bounds(dependencies.declared())
    assert set(named) <= everything.keys()
    assert len(named) == len(set(named))


def test_a_version_with_a_known_flaw_is_refused_without_a_network(tmp_path: Path):
    status, told = audit(tmp_path, with_version(tmp_path, "jinja2", "3.1.5"))
    assert status == 1
    assert told.startswith("lock.txt: jinja2 3.1.5: CVE-2025-27516: ")
    assert told.count("\n") == 1


def test_a_lower_bound_with_a_known_flaw_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dependencies, "declared", lambda: {"": ["transformers>=5.9.0", "pyyaml>=6.0.2"]})
    (line,) = dependencies.known(LOCK)
    assert line.startswith("setup.py: transformers 5.9.0: CVE-2026-9856: ")


def test_services_that_do_not_answer_are_told_of_and_fail_nothing(tmp_path: Path):
    status, told = audit(tmp_path, LOCK)
    assert status == 0
    assert told.splitlines()[1:] == ["no vulnerability service answers: pip-audit was left out"]


@pytest.mark.parametrize("service", ["pypi", "osv"])
def test_a_service_that_answers_decides(tmp_path: Path, service: str):
    probe = f"{service} {PROBE}\n"
    assert audit(tmp_path, LOCK, probe)[0] == 0
    status, told = audit(tmp_path, LOCK, f"{probe}{service} jinja2==3.1.6 CVE-of-tomorrow\n")
    assert status == 1
    assert "CVE-of-tomorrow" in told and told.rstrip().endswith("True")


def test_an_environment_that_left_the_lock_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Installed:
        def __init__(self, name: str, version: str):
            self.name, self.version = name, version

    installed = [
        *(Installed("Jinja2", "3.1.5"), Installed("torch", "2.13.0+cpu"), Installed("left_behind", "1.0")),
        *(Installed("prorank-jax", "0.1.0"), Installed("pip", "23.2.1"), Installed("nvidia-cublas", "13.0")),
    ]
    monkeypatch.setattr(dependencies, "distributions", lambda: installed)
    (tmp_path / "lock.txt").write_text("# Made by\njinja2==3.1.6\ntorch==2.13.0\n")
    assert list(dependencies.drift(tmp_path / "lock.txt")) == [
        "jinja2 3.1.5 is installed, 3.1.6 is in lock.txt",
        "left-behind 1.0 is installed, nothing is in lock.txt",
    ]
