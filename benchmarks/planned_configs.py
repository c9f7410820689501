"""Every configuration in configs/ that names a TPU slice, compiled for it: does each stage fit, and what does it take?

The bases' sizes are those of tests/published.json, so that nothing is downloaded. Needs libtpu, and no TPU. About two
minutes for each configuration on two cores.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _record import parser, write

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "tests" / "published.json"


def hardware(path: Path) -> str | None:
    """The slice that a configuration's header names."""
    found = re.search(r"^# Hardware:.*?(v\d\w*:[\dx]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else None


def size_of(base: str) -> str:
    """The name of a base among the published sizes: `google/gemma-3-1b-it` is `gemma-3-1b`."""
    return base.split("/")[-1].removesuffix("-it").removesuffix("-Instruct")


@contextmanager
def base_folder(size: str) -> Iterator[str]:
    """A model folder with nothing but the `config.json` of a published size."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = json.loads(PUBLISHED.read_text(encoding="utf-8"))[size]["config"]
        (Path(folder) / "config.json").write_text(json.dumps(sizes))
        yield folder


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="*", metavar="NAME", help="file names without .yaml; default: all")
    arguments.add_argument("--topology", help="instead of that in the header")
    options = arguments.parse_args()

    from prorank_jax.config_file import load_config
    from prorank_jax.plan import plan
    from prorank_jax.planning.compiled import moved
    from prorank_jax.progress import tell

    rows: list[dict[str, Any]] = []
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        topology = options.topology or hardware(path)
        if topology is None or (options.only and path.stem not in options.only):
            continue
        with base_folder(size_of(load_config(path).model.base)) as folder:
            planned = plan(load_config(path, [f"model.base={folder}"]), topology, tell)
        for stage in planned.stages:
            row = {"config": path.stem, "topology": topology, **planned.mesh, "stage": stage.name, "fits": stage.fits}
            row |= {"gib": round(stage.used / 2**30, 2), "tflops": round(stage.flops / 1e12, 1)}
            row |= {"moved_gib": round(sum(moved(stage.collectives).values()) / 2**30, 2)}
            row |= {"seconds": round(stage.seconds, 3), "remedy": planned.remedies.get(stage.name, "")}
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.out:
        write(options.out, {"stages": rows}, libraries=["jax", "libtpu"])
    print(
        f"{sum(row['fits'] for row in rows)} of {len(rows)} stages of {len({row['config'] for row in rows})} files fit"
    )


if __name__ == "__main__":
    main()
