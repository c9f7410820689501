"""The shape of the package: who may import whom, what stays out, and how fast it starts."""

import ast
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "prorank_jax"

# From the bottom up; a module imports its own layer and those below. A name ending in a dot stands for all
# modules under it that no other line names.
LAYERS = [
    [
        "config",
        "config_file",
        "errors",
        "json_text",
        "atomic",
        "progress",
        "cache",
        "buckets",
        "storage",
        "checksums",
        "tables",
        "ahead",
        "relevance",
        "byte_order_mark",
        "seeds",
    ],
    ["warmup.grpo", "warmup.rewards", "scoring.losses", "model.attention", "model.precision"],
    [
        *("data.", "runtime.", "model.", "warmup.", "scoring.", "evaluation."),
        *(
            "prompt",
            "templates",
            "thinking",
            "answer_place",
            "sandbox",
            "rendering",
            "pieces",
            "slots",
            "cross_encoder",
            "run_folder",
            "run_lock",
            "lease",
            "card",
            "export",
        ),
    ],
    [
        "train",
        "demo.",
        "reranker",
        "serving.",
        "reranking.",
        "evaluate",
        "evaluation.cost",
        "suite",
        "suite_report",
        "teacher",
        "report",
        "reporting.",
        "plan",
        "planning.",
        "doctor",
        "run_doctor",
        "warmup.stage",
        "scoring.stage",
    ],
    ["cli", "cli_data", "cli_options", "cli_rerank", "cli_serve"],
]
ONLY_IN = {
    "flax": ["model/"],
    "ranx": ["evaluation/compiled.py"],
    "orbax": ["runtime/checkpoint.py"],
    "etils": ["storage.py"],
    "fsspec": ["buckets.py"],
    "gcsfs": ["buckets.py"],
    "google": ["buckets.py"],
    "fastapi": ["serving/"],
    "starlette": ["serving/"],
    "uvicorn": ["serving/"],
    "prometheus_client": ["serving/"],
    "torch": [],
    "tensorflow": [],
}


def modules() -> dict[str, Path]:
    """Every module of the package but the `__init__` files, by its name inside the package."""
    paths = (path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py")
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imports(path: Path) -> Iterator[str]:
    """Full dotted names that a file imports, wherever in it: `from a import b` is both `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: a relative import; name the package"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(path: Path) -> set[str]:
    """The package's own modules among a file's imports."""
    names = {name.removeprefix("prorank_jax.") for name in imports(path) if name.startswith("prorank_jax.")}
    return names & modules().keys()


def layer(module: str) -> int | None:
    """Index into LAYERS of the line that names the module, else of the one that names its folder."""
    for name in (module, module.split(".")[0] + "."):
        for level, names in enumerate(LAYERS):
            if name in names:
                return level
    return None


def test_every_module_has_a_layer():
    assert len(modules()) > 5
    assert [module for module in modules() if layer(module) is None] == []


def test_imports_go_downward_only():
    upward = [
        f"{module} imports {other}"
        for module, path in modules().items()
        for other in inside(path)
        if (layer(other) or 0) > (layer(module) or 0)
    ]
    assert upward == []


def test_no_module_imports_itself_by_a_detour():
    # Raises CycleError, which names the cycle.
    TopologicalSorter({module: inside(path) for module, path in modules().items()}).prepare()


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_has_its_place(library):
    elsewhere = [
        place
        for path in sorted(PACKAGE.rglob("*.py"))
        if library in {name.split(".")[0] for name in imports(path)}
        and not (place := path.relative_to(PACKAGE).as_posix()).startswith(tuple(ONLY_IN[library]))
    ]
    assert elsewhere == []


def test_every_module_imports_without_torch_and_tensorflow():
    # None in sys.modules makes an import fail as if the library were not installed; but TFDS takes any entry there
    # for TensorFlow itself.
    program = (
        "import importlib, importlib.abc, sys\n"
        "sys.modules['torch'] = None\n"
        "class WithoutTensorFlow(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] == 'tensorflow': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, WithoutTensorFlow())\n"
        "for name in sys.argv[1:]: importlib.import_module(f'prorank_jax.{name}')\n"
    )
    subprocess.run([sys.executable, "-c", program, *modules()], check=True)


def seconds(*command: str | Path) -> float:
    """The best wall-clock time of three runs."""

    def once() -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    return min(once() for _ in range(3))


def test_the_package_imports_within_two_seconds():
    assert seconds(sys.executable, "-c", "import prorank_jax") < 2


def test_the_help_appears_within_a_second():
    assert seconds(Path(sys.executable).with_name("prorank"), "--help") < 1


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_a_test_that_leaves_the_machine_fails(method):
    # 192.0.2.1 is reserved for documentation: no machine has it.
    with socket.socket() as connection, pytest.raises(pytest.fail.Exception, match="192.0.2.1"):
        getattr(connection, method)(("192.0.2.1", 80))


def test_a_test_may_connect_to_its_own_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
