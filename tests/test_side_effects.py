"""Importing the package and loading a model change nothing in the process for those who share it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from test_structure import imports, modules

# Third-party modules are imported first: what they do to the process by themselves is not ours.
PROGRAM = """
import atexit, importlib, importlib.util, json, logging, os, signal, sys, warnings

# transformers would import PyTorch, which takes seconds.
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)

ours, theirs = json.loads(sys.argv[1])
for name in theirs:
    try:
        importlib.import_module(name)
    except ImportError:
        pass  # of a name in a module, or of an extra
import jax
jax.device_count()

def seen():
    def of_logger(logger):
        return [logger.level, logger.propagate, logger.disabled, list(map(repr, logger.handlers)), len(logger.filters)]

    loggers = {name: one for name, one in logging.root.manager.loggerDict.items() if isinstance(one, logging.Logger)}
    classes = {
        f"{module}.{name}": {attribute: id(value) for attribute, value in vars(kind).items()}
        for module, loaded in list(sys.modules.items())
        if module.split(".")[0] in ("numba", "ranx", "absl", "orbax", "flax", "logging", "subprocess")
        for name, kind in list(vars(loaded).items())
        if isinstance(kind, type) and kind.__module__ == module
    }
    return {
        "loggers": {"root": of_logger(logging.root)} | {name: of_logger(one) for name, one in loggers.items()},
        "absl": sys.modules["absl.logging"].get_verbosity(),
        "warnings": [list(map(str, one)) for one in warnings.filters],
        "environment": dict(os.environ),
        "jax": dict(jax.config.values),
        "numba": {name: repr(value) for name, value in vars(sys.modules["numba"].config).items()},
        "classes": classes,
        "signals": {str(one): repr(signal.getsignal(one)) for one in signal.valid_signals()},
        "hooks": [repr(one) for one in (sys.excepthook, sys.unraisablehook, warnings.showwarning, *sys.meta_path)],
        "path": list(sys.path),
        "modules": {name: id(module) for name, module in sys.modules.items()},
        "without a file": [
            name
            for name, module in sys.modules.items()
            if module is not None and getattr(module, "__spec__", None) is None and name != "__main__"
        ],
    }

def differences(before, after):
    for kind, was in before.items():
        now = after[kind]
        if not isinstance(was, dict):
            yield from [f"{kind}: {was} -> {now}"] if was != now else []
            continue
        added = now.keys() - was.keys() if kind in ("environment", "jax") else set()
        for name in sorted({*was, *added}):
            if was.get(name) != now.get(name):
                yield f"{kind}: {name}: {was.get(name)} -> {now.get(name)}"

first, exits = seen(), atexit._ncallbacks()
for name in ours:
    importlib.import_module(f"prorank_jax.{name}")
second = seen()
told = {"import": list(differences(first, second)), "exits": atexit._ncallbacks() - exits}
from prorank_jax import Reranker
from prorank_jax.evaluation.compiled import with_ranx
reranker = Reranker.from_pretrained("builtin:tiny")
[hit] = reranker.rank("fish?", ["It serves fish."])
assert with_ranx(lambda ranx: ranx) is sys.modules["ranx"]
told["load"] = list(differences(second, seen()))
print(json.dumps(told))
"""


def test_imports_and_loading_leave_no_trace(tmp_path: Path) -> None:
    theirs = {name for path in modules().values() for name in imports(path)}
    theirs = {name for name in theirs if name.split(".")[0] not in ("prorank_jax", *sys.stdlib_module_names)}
    # Names that were chosen by whoever started the process would hide what is set where there are none.
    chosen = ("JAX_COMPILATION_CACHE_DIR", "NUMBA_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    arguments = json.dumps([sorted(modules()), sorted(theirs)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arguments],
        env=environment | {"PRORANK_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    # One thing at the end of the process: the renderer of templates ends.
    assert told == {"import": [], "exits": 1, "load": []}
    assert list(tmp_path.iterdir()) == []


ADVICE = """
import importlib.util, os, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
from prorank_jax.prompt import load_tokenizer
before = dict(os.environ)
load_tokenizer(sys.argv[1])
assert dict(os.environ) == before
"""


def test_a_tokenizer_without_pytorch_is_no_warning(tiny_model: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ADVICE, tiny_model], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
