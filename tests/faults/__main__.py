"""All tests of faults, for a given time: `python -m tests.faults --minutes 30`."""

import argparse
import sys
from pathlib import Path

import pytest


def main() -> int:
    """Runs them; the exit status is pytest's."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long in all, at least (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and cases (default: 0)")
    options = parser.parse_args()
    folder = Path(__file__).parent
    chosen = [f"--fault-minutes={options.minutes}", f"--fault-seed={options.seed}"]
    return int(pytest.main([str(folder), "--capture=tee-sys", "-v", *chosen]))


if __name__ == "__main__":
    sys.exit(main())
