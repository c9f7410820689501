#!/usr/bin/env python3
"""A stand-in for gcloud: writes down what it is asked, word for word, and plays a TPU of two workers.

FAKE_CLOUD is its folder: `calls.jsonl`, `state` (that of the queued resource; no file: there is none), `worker0/` and
`worker1/` (their homes), and `script.json`, what happens: `create` lists the states that a new request goes through,
and `runs` what the successive starts of a command come to: an exit status, or "gone" for a TPU that is taken away.

A command for a worker is run by bash in the worker's home, with stand-ins of tmux, uv and prorank before all others.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])
STATE, SCRIPT = CLOUD / "state", CLOUD / "script.json"
WORKERS = ["worker0", "worker1"]


def main(words: list[str]) -> int:
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    options = dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))
    verb = [word for word in words if not word.startswith("--")]
    match verb:
        case ["compute", "tpus", "queued-resources", "create", _]:
            script = json.loads(SCRIPT.read_text())
            first, *later = script["create"]
            SCRIPT.write_text(json.dumps(script | {"states": later}))
            STATE.write_text(first)
            for worker in WORKERS:
                (CLOUD / worker).mkdir()
        case ["compute", "tpus", "queued-resources", "describe", name]:
            if not STATE.exists():
                print(f"ERROR: (gcloud) NOT_FOUND: {name}", file=sys.stderr)
                return 1
            print(STATE.read_text())
            script = json.loads(SCRIPT.read_text())
            if script.get("states"):
                STATE.write_text(script["states"].pop(0))
                SCRIPT.write_text(json.dumps(script))
        case ["compute", "tpus", "queued-resources", "delete", _]:
            STATE.unlink()
            for worker in WORKERS:
                shutil.rmtree(CLOUD / worker)
        case ["compute", "tpus", "tpu-vm", "ssh", _]:
            return over_workers(options, lambda home: shell(home, options["command"]))
        case ["compute", "tpus", "tpu-vm", "scp", source, target] if ":" in target:
            return over_workers(options, lambda home: bool(shutil.copy(source, home / target.split(":")[1])) - 1)
        case ["compute", "tpus", "tpu-vm", "scp", source, target]:
            shutil.copytree(CLOUD / "worker0" / source.split(":")[1], target)
        case ["storage", "rsync", source, target]:
            shutil.copytree(CLOUD / "bucket" / source.removeprefix("gs://"), target, dirs_exist_ok=True)
        case _:
            print(f"ERROR: (gcloud) Invalid choice: {words}", file=sys.stderr)
            return 2
    return 0


def over_workers(options, each) -> int:
    if not STATE.exists() or STATE.read_text() != "ACTIVE":
        print("ERROR: (gcloud) the TPU is not there", file=sys.stderr)
        return 255
    chosen = WORKERS if options["worker"] == "all" else [f"worker{options['worker']}"]
    return max(each(CLOUD / worker) for worker in chosen)


def shell(home: Path, command: str) -> int:
    environment = os.environ | {"HOME": str(home), "PATH": f"{CLOUD / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", command], cwd=home, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
