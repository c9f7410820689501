"""What this machine has and what is missing, for `prorank doctor`. Looks only at the machine: no network.

A check is not ok when something that every run needs is missing; what only some commands need is ok with a
remedy that says what for. The packages that are needed are those that the installed metadata lists.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

from prorank_jax.ahead import cpus
from prorank_jax.atomic import check_writable
from prorank_jax.cache import VARIABLE, cache_folder

_GIB = 2**30

_OPTIONAL = {
    "libtpu": ("tpu", "running on a TPU and `prorank plan`"),
    "gcsfs": ("gcs", "what lies in gs:// buckets"),
    "fastapi": ("serve", "`prorank serve`"),
    "torch": ("test", "the tests that compare with it"),
}
"""Package -> (our extra that installs it, what it is needed for)."""


class Check(NamedTuple):
    """One finding: `ok` is False only if a required thing is missing, `remedy` is empty if nothing is to be done."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


def diagnose() -> list[Check]:
    """All checks, in the order in which they are worth reading."""
    return [_python(), *_packages(), *_extras(), _devices(), *_machine(), _hub(), *_folders()]


def describe(checks: Iterable[Check], not_ok: str = "MISSING") -> str:
    """The checks as lines of text: `ok`, `note` (works, something could be better) or what is said of those not ok."""
    lines = []
    for check in checks:
        mark = not_ok if not check.ok else "note" if check.remedy else "ok"
        lines.append(f"{mark:<8} {check.name:<24} {check.detail}" + (f"; {check.remedy}" if check.remedy else ""))
    return "\n".join(lines)


def _python() -> Check:
    enough = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} ({sys.executable})"
    return Check("python", enough, detail, "" if enough else "install Python 3.11 or newer")


def _packages() -> list[Check]:
    try:
        distribution = importlib.metadata.distribution("prorank_jax")
    except importlib.metadata.PackageNotFoundError:
        return [Check("prorank_jax", False, "not installed", "in the clone, run: pip install -e .")]
    requirements = [Requirement(line) for line in distribution.requires or []]
    # An extra's requirement carries a marker that does not hold without the extra.
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [
        Check("prorank_jax", True, distribution.version),
        *(_package(requirement) for requirement in needed),
    ]


def _package(requirement: Requirement) -> Check:
    version = _version(requirement.name)
    wanted = f"{requirement.name}{requirement.specifier}"
    if version is None:
        return Check(requirement.name, False, "not installed", f"pip install '{wanted}'")
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, False, f"{version} does not fit", f"pip install '{wanted}'")
    return Check(requirement.name, True, version)


def _extras() -> list[Check]:
    checks = []
    for name, (extra, purpose) in _OPTIONAL.items():
        version = _version(name)
        remedy = "" if version else f"only for {purpose}: pip install 'prorank_jax[{extra}]'"
        checks.append(Check(f"{name} (optional)", True, version or "not installed", remedy))
    return checks


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Check:
    try:
        import jax

        devices = jax.devices()
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = "JAX_PLATFORMS=cpu runs on the CPU; another process may be holding the accelerator"
        return Check("jax devices", False, reason, remedy)
    kinds = sorted({device.device_kind for device in devices})
    return Check("jax devices", True, f"{jax.default_backend()}: {len(devices)} x {', '.join(kinds)}")


def _machine() -> list[Check]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    disk = shutil.disk_usage(Path.cwd()).free / _GIB
    return [
        Check("cores", True, str(cpus())),
        Check("memory", True, f"{memory:.1f} GiB", "" if memory >= 4 else "`prorank demo` needs up to 4 GiB"),
        Check(
            "disk free here",
            True,
            f"{disk:.1f} GiB",
            "" if disk >= 2 else "checkpoints may not fit; free some space",
        ),
    ]


def _hub() -> Check:
    name = "hugging face hub"
    try:
        from huggingface_hub import constants
    except ImportError:
        return Check(name, True, "huggingface_hub not installed", "models come from local folders only")
    if constants.HF_HUB_OFFLINE:
        remedy = "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE to download models"
        return Check(name, True, "offline: models come from folders and the cache only", remedy)
    return Check(name, True, f"downloads allowed (not tried), from {constants.ENDPOINT}")


def _folders() -> list[Check]:
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return [
        _writable("current folder", Path.cwd(), "give --workdir a folder that you may write to"),
        _writable("hub cache", cache, "set HF_HOME to a folder that you may write to"),
        _writable("collections and indexes", cache_folder(), f"set {VARIABLE} to a folder that you may write to"),
    ]


def _writable(name: str, folder: Path, remedy: str) -> Check:
    try:
        check_writable(folder)
    except OSError:
        return Check(name, True, f"{folder} is not writable", remedy)
    return Check(name, True, f"{folder}")
