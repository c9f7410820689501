"""What the benchmarks share: the argument `--out`, and the file of figures that it asks for."""

import argparse
import datetime
import importlib.metadata
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that knows `--out`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, metavar="FILE.json", help="write the figures here")
    return made


def write(
    out: Path, figures: Mapping[str, Any], *, libraries: Sequence[str], accelerator: str = "no accelerator"
) -> None:
    """Writes figures with the date, the command, the machine in words and the versions of libraries.

    The command is as it was typed, but for the folder of `out`.
    """
    options = shlex.join(sys.argv[1:]).replace(str(out), out.name)
    record = {
        "date": datetime.date.today().isoformat(),
        "command": f"python benchmarks/{Path(sys.argv[0]).name} {options}",
        "machine": f"{_cores_and_memory()}, {accelerator}",
        "versions": {library: importlib.metadata.version(library) for library in libraries},
        **figures,
    }
    out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _cores_and_memory() -> str:
    # Under taskset or in a container a process may use fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{cores} CPU cores, {memory / 2**30:.1f} GiB memory"
