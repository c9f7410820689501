"""What the package depends on: exact versions for CI, the lower ends of the bounds, and flaws that both must be above.

lock          writes lock-X.Y.txt beside this file: what pip takes today for all that CI installs, on this Python
lowest        prints constraints that hold each requirement in setup.py at its lower bound
drift LOCK    fails where the Python that runs this has other versions installed than LOCK says
known LOCK    fails where a version in LOCK, or a lower bound, has a flaw that advisories.txt names

`lock` and `lowest` need nothing installed, the others what the package needs.
"""

import json
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from unittest.mock import Mock, patch

CI = Path(__file__).resolve().parent
ROOT = CI.parent
OWN = "prorank-jax"
# What torch brings along where its wheel is not the CPU's.
CUDA = ("cuda-", "nvidia-", "triton")


def normal(name: str) -> str:
    """A name as pip compares it: `array_record` and `PyStemmer` are `array-record` and `pystemmer`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> dict[str, list[str]]:
    """The requirements in setup.py, by extra; the package's own are under ''."""
    setuptools = Mock()
    with patch.dict(sys.modules, setuptools=setuptools):
        runpy.run_path(str(ROOT / "setup.py"))
    given = setuptools.setup.call_args.kwargs
    return {"": given["install_requires"], **given["extras_require"]}


def lower_bounds(requirements: dict[str, list[str]]) -> dict[str, str]:
    """The lower bound of each requirement, by its name: `jax[tpu]>=0.10.2,<0.12` gives `{"jax": "0.10.2"}`.

    Raises:
      SystemExit: a requirement has no lower bound, or one has two.
    """
    bounds: dict[str, str] = {}
    for requirement in (requirement for extra in requirements.values() for requirement in extra):
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?(?:>=|==)([\w.]+)(?:,<[\w.]+)?", requirement)
        if match is None:
            raise SystemExit(f"setup.py: {requirement}: no lower bound; write NAME>=VERSION or NAME==VERSION")
        name, version = normal(match[1]), match[2]
        if bounds.setdefault(name, version) != version:
            raise SystemExit(f"setup.py: {requirement}: the bound is {bounds[name]} elsewhere; write one")
    return bounds


def read_lock(path: Path) -> dict[str, str]:
    """The versions in a file of lines `NAME==VERSION`, by name."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pins = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {normal(name): version for name, _, version in pins}


def advisories() -> Iterator[tuple[str, str, str]]:
    """The lines of advisories.txt: a name, the first version without the flaw, the flaw."""
    for line in (CI / "advisories.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, mended, flaw = line.split(maxsplit=2)
            yield name, mended, flaw


def lock() -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        resolve = ["install", "--quiet", "--dry-run", "--ignore-installed", "--report", str(report)]
        subprocess.run([sys.executable, "-m", "pip", *resolve, ".[test,elsewhere]"], cwd=ROOT, check=True)
        found = [install["metadata"] for install in json.loads(report.read_text(encoding="utf-8"))["install"]]
    # A constraint without the local version, such as torch's `+cpu`, admits every build.
    versions = {normal(package["name"]): package["version"].partition("+")[0] for package in found}
    pins = [f"{name}=={version}" for name, version in sorted(versions.items()) if name != OWN]
    text = "\n".join([f"# Made by: python{python} .ci/dependencies.py lock", *pins])
    (CI / f"lock-{python}.txt").write_text(f"{text}\n", encoding="utf-8")


def drift(path: Path) -> Iterator[str]:
    locked = read_lock(path)
    for distribution in distributions():
        name, version = normal(distribution.name), distribution.version.partition("+")[0]
        apart = name in (OWN, "pip") or (name.startswith(CUDA) and name not in locked)
        if not apart and locked.get(name) != version:
            yield f"{name} {version} is installed, {locked.get(name, 'nothing')} is in {path.name}"


def known(path: Path) -> Iterator[str]:
    from packaging.version import Version

    for place, versions in {path.name: read_lock(path), "setup.py": lower_bounds(declared())}.items():
        for name, mended, flaw in advisories():
            if name in versions and Version(versions[name]) < Version(mended):
                yield f"{place}: {name} {versions[name]}: {flaw}; {mended} is without it"


def main(words: list[str]) -> None:
    match words:
        case ["lock"]:
            lock()
        case ["lowest"]:
            print("\n".join(f"{name}=={version}" for name, version in lower_bounds(declared()).items()))
        case ["drift" | "known" as verb, path]:
            check = {"drift": drift, "known": known}[verb]
            if found := list(check(Path(path))):
                raise SystemExit("\n".join(found))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
