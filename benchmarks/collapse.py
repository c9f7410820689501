"""What keeps a warmup from collapsing to one answer, on a toy: each option of the configuration, several seeds.

    python benchmarks/collapse.py [--seeds 8] [--out FILE.json]

A run has collapsed where it gives one answer to more than 97 of 100 prompts.
"""

from typing import Any

import jax
import numpy as np
from _collapse import Method, expected, grpo, trained
from _record import parser, write

CASES: dict[str, Method] = {
    "grpo": grpo(),
    "grpo, entropy 0.1": grpo(entropy=0.1),
    "grpo, balanced reference, beta 0.1": grpo(beta=0.1, balanced=True),
    "grpo, advantage batch_std": grpo(advantage="batch_std"),
    "grpo, advantage group_mean": grpo(advantage="group_mean"),
    "grpo, oversampling 4": grpo(oversampling=4),
    "expected": expected(),
    "expected, entropy 0.1": expected(entropy=0.1),
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=8)
    options = arguments.parse_args()
    figures: dict[str, Any] = {}
    for name, config in CASES.items():
        rows = [trained(config, seed) for seed in range(options.seeds)]
        held = [row for row in rows if 0.03 <= row["positive_rate"] <= 0.97]
        figures[name] = {
            "held": len(held),
            "accuracy": [round(row["accuracy"], 3) for row in rows],
            "format_rate": round(float(np.mean([row["format_rate"] for row in rows])), 3),
        }
        mean = np.mean([row["accuracy"] for row in rows])
        print(f"{name:36} {len(held)} of {options.seeds} hold, accuracy {mean:.3f}, {figures[name]['format_rate']}")
        jax.clear_caches()
    if options.out:
        write(options.out, {"cases": figures}, libraries=["jax", "optax"])
    plain, exact = figures["grpo"]["held"], figures["expected"]["held"]
    print(f"runs of {options.seeds} that hold: grpo {plain}, expected {exact}")


if __name__ == "__main__":
    main()
