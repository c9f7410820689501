"""Weak scaling by the plan: what a chip moves in a GRPO step, from 8 to 64 chips with as many rows on each.

Qwen2.5-0.5B, split over 4 chips and repeated over the others; 8 prompts of 512 tokens a chip. Needs libtpu, and no TPU.
"""

import json
from typing import Any

from _record import parser, write
from planned_configs import ROOT, base_folder

TOPOLOGIES = ("v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8")
FSDP, ROWS = 4, 8


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--topologies", nargs="+", default=TOPOLOGIES, metavar="NAME")
    options = arguments.parse_args()

    from prorank_jax.config_file import load_config
    from prorank_jax.plan import compile_stage
    from prorank_jax.planning.compiled import moved
    from prorank_jax.progress import tell

    rows: list[dict[str, Any]] = []
    for topology in options.topologies:
        width, height = map(int, topology.split(":")[1].split("x"))
        chips = width * height
        with base_folder("Qwen2.5-0.5B") as folder:
            changes = [f"model.base={folder}", f"mesh.fsdp={FSDP}", f"warmup.prompts_per_step={ROWS * chips}"]
            config = load_config(ROOT / "configs" / "qwen2.5-0.5b.yaml", changes)
            stage = compile_stage(config, topology, "warmup", tell)
        by_kind = {f"{kind} over {'+'.join(axes)}": size for (kind, axes), size in moved(stage.collectives).items()}
        rows.append({"topology": topology, "chips": chips, "bytes": sum(by_kind.values()), "by_kind": by_kind})
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        write(options.out, {"slices": rows}, libraries=["jax", "libtpu"])
    first, last = rows[0]["bytes"], rows[-1]["bytes"]
    fewest, most = rows[0]["chips"], rows[-1]["chips"]
    told = f"{last / first:.4f} ({first / 2**30:.2f} GiB on {fewest})"
    print(f"bytes moved a chip and step, {most} chips over {fewest}: {told}")


if __name__ == "__main__":
    main()
