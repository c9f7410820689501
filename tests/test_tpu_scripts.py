"""The launch scripts against a stand-in for gcloud, which notes what it is asked and runs what workers are told."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "tpu_scripts"
FAKE = Path(__file__).parent / "fake_gcloud.py"
NAMES = {"TPU_NAME": "my-tpu", "PROJECT": "my project", "ZONE": "us-west4-a", "ACCELERATOR_TYPE": "v5litepod-8"}
WHERE = ["--project=my project", "--zone=us-west4-a"]

# tmux runs the session at once; what a run comes to is the next line of the script of the world.
TMUX = """\
#!/usr/bin/env bash
[[ $1 == new-session ]] || exit 1
bash -c "${@: -1}"
"""
PRORANK = f"""\
#!{sys.executable}
import json, os, sys
from pathlib import Path
cloud, home = Path(os.environ["FAKE_CLOUD"]), Path.home()
with (home / "argv.jsonl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if sys.argv[1] == "--help":
    sys.exit(0)
print("training", home.name)
script = json.loads((cloud / "script.json").read_text())
end = script["runs"][0]
if home.name == "worker1":
    script["runs"].pop(0)
    (cloud / "script.json").write_text(json.dumps(script))
    if end == "gone":
        (cloud / "state").write_text("SUSPENDED")
sys.exit(0 if end == "gone" else end)
"""


MAKES_ENVIRONMENT = """\
#!/bin/sh
[ "$*" = "-m uv venv --quiet --python 3.12 .venv" ] || exit 0
mkdir -p .venv/bin
ln -s /bin/true .venv/bin/python
ln -s "$FAKE_CLOUD/bin/prorank" .venv/bin/prorank
"""


class Cloud:
    """A world of its own for one test."""

    def __init__(self, folder: Path, **script: Any):
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name, text in {"tmux": TMUX, "prorank": PRORANK}.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        (folder / "path").mkdir()
        (folder / "path" / "gcloud").symlink_to(FAKE)
        (folder / "script.json").write_text(json.dumps({"create": ["ACTIVE"], "runs": []} | script))

    def __call__(self, script: str, *words: str, **names: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | NAMES | {"WAIT_UNIT": "0.0001", "FAKE_CLOUD": str(self.folder)} | names
        environment |= {"PATH": f"{self.folder / 'path'}:{os.environ['PATH']}", "TPU_ENV": "/nowhere"}
        command = [str(SCRIPTS / script), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def active(self) -> "Cloud":
        """With a TPU that was created and set up."""
        for worker in ("worker0", "worker1"):
            (self.folder / worker / "prorank_jax").mkdir(parents=True)
        (self.folder / "state").write_text("ACTIVE")
        return self

    def received(self, worker: int) -> list[list[str]]:
        lines = (self.folder / f"worker{worker}" / "argv.jsonl").read_text().splitlines()
        return [words for line in lines if (words := json.loads(line)) != ["--help"]]


def verbs(calls: list[list[str]]) -> list[str]:
    return [" ".join(call[2:4]) if call[0] == "compute" else " ".join(call[:2]) for call in calls]


def test_a_request_is_made_and_waited_for(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, create=["WAITING_FOR_RESOURCES", "PROVISIONING", "PROVISIONING", "ACTIVE"])
    done = cloud("create.sh")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "my-tpu: WAITING_FOR_RESOURCES\nmy-tpu: PROVISIONING\nmy-tpu: ACTIVE\n"
    create = [call for call in cloud.calls if call[3] == "create"]
    assert create == [
        [
            *("compute", "tpus", "queued-resources", "create", "my-tpu", "--node-id=my-tpu"),
            *("--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", "--spot", *WHERE),
        ]
    ]
    # Again: it is there, and nothing more is asked for.
    assert cloud("create.sh").stdout == "my-tpu: ACTIVE\n"
    assert [call for call in cloud.calls if call[3] == "create"] == create


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-8", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_the_image_is_that_of_the_generation(tmp_path: Path, kind: str, image: str) -> None:
    shown = Cloud(tmp_path)("create.sh", "--dry-run", ACCELERATOR_TYPE=kind, SPOT="0").stdout
    assert shown == (
        "gcloud compute tpus queued-resources create my-tpu --node-id=my-tpu "
        f"--accelerator-type={kind} --runtime-version={image} --project=my\\ project --zone=us-west4-a \n"
    )


def test_a_request_that_fails_or_takes_too_long_is_given_up(tmp_path: Path) -> None:
    failed = Cloud(tmp_path / "failed", create=["FAILED"])("create.sh")
    assert failed.returncode == 2 and "my-tpu is FAILED; remove it with delete.sh my-tpu" in failed.stderr
    slow = Cloud(tmp_path / "slow", create=["WAITING_FOR_RESOURCES"])("create.sh", CREATE_MINUTES="3")
    assert slow.returncode == 3
    assert slow.stderr == "create.sh: my-tpu is still WAITING_FOR_RESOURCES after 3 minutes; start again to wait on\n"


def test_the_checkout_goes_to_all_workers(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path).active()
    shown = cloud("setup.sh", "--dry-run")
    assert shown.returncode == 0
    copy, install = shown.stdout.split("gcloud ")[1:]
    assert copy.endswith("prorank_jax.tar.gz my-tpu: --worker=all --project=my\\ project --zone=us-west4-a \n")
    assert "--worker=all" in install and "uv" in install and "tpu" in install
    # What the workers unpack is what is committed; what would be fetched from outside is left out here.
    pip = tmp_path / "bin" / "python3"
    pip.write_text("#!/bin/sh\nexit 0\n")
    pip.chmod(0o755)
    for worker in ("worker0", "worker1"):
        ready = tmp_path / worker / "prorank_jax" / ".venv" / "bin"
        ready.mkdir(parents=True)
        for name in ("python", "prorank"):
            (ready / name).symlink_to("/bin/true")
    done = cloud("setup.sh")
    assert (done.returncode, done.stderr) == (0, "")
    for worker in ("worker0", "worker1"):
        assert (tmp_path / worker / "prorank_jax" / "setup.py").is_file()


HARD = ["train", "my config.yaml", "--workdir", 'gs://b/it\'s "here"', "prompt.instruction=a $HOME `ls` \\n *", "", "é"]


def test_arguments_arrive_as_they_were_written(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, runs=[0]).active()
    done = cloud("run.sh", "nq-1", "--", "prorank", *HARD)
    assert (done.returncode, done.stderr) == (0, "")
    for worker in (0, 1):
        assert cloud.received(worker) == [HARD]
        folder = tmp_path / f"worker{worker}" / "runs" / "nq-1"
        assert (folder / "log").read_text() == f"training worker{worker}\n"
        assert (folder / "status").read_text() == "0\n"
    assert all("--worker=all" in call for call in cloud.calls)


def test_a_run_that_is_going_is_not_started_again(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path).active()
    (tmp_path / "bin" / "tmux").write_text("#!/bin/sh\n[ $1 = has-session ]\n")
    done = cloud("run.sh", "nq", "--", "prorank", "train")
    assert (done.returncode, done.stderr) == (4, "run.sh: nq is still going; see logs.sh nq\n")


def test_a_run_is_seen_through_two_preemptions(tmp_path: Path) -> None:
    # Preempted with a checkpoint; then the TPU itself is taken away; then it ends well.
    cloud = Cloud(tmp_path, runs=[75, "gone", 0], create=["PROVISIONING", "ACTIVE"])
    ready = tmp_path / "bin" / "python3"
    ready.write_text(MAKES_ENVIRONMENT)
    ready.chmod(0o755)
    done = cloud("babysit.sh", "nq", "--", "prorank", *HARD)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("babysit: ")]
    assert told == [
        "babysit: my-tpu is not there; making a new one",
        "babysit: nq ended (75 75 ); try 1 of 20 in 30 s",
        "babysit: nq ended (no answer); try 2 of 20 in 60 s",
        "babysit: my-tpu is not there; making a new one",
        "babysit: nq is done",
    ]
    # On the new TPU the same command goes on, with the same words.
    assert cloud.received(0) == [HARD]
    made = [verb for verb in verbs(cloud.calls) if verb.endswith(("create", "delete", "scp"))]
    assert made == [
        *("queued-resources delete", "queued-resources create", "tpu-vm scp"),
        *("queued-resources delete", "queued-resources create", "tpu-vm scp"),
    ]

    (tmp_path / "bucket" / "b" / "nq").mkdir(parents=True)
    (tmp_path / "bucket" / "b" / "nq" / "model").write_text("weights")
    there = tmp_path / "my models"
    assert cloud("fetch.sh", "gs://b/nq", str(there)).returncode == 0
    assert (there / "model").read_text() == "weights"
    assert cloud.calls[-1] == ["storage", "rsync", "--recursive", "gs://b/nq", str(there), "--project=my project"]
    assert cloud("fetch.sh", "runs/nq", str(tmp_path / "logs")).returncode == 0
    assert (tmp_path / "logs" / "log").read_text() == "training worker0\n"

    assert cloud("delete.sh", "my-tpu").stderr == "deleting my-tpu in my project, us-west4-a\n"
    assert cloud.calls[-1] == [
        *("compute", "tpus", "queued-resources", "delete", "my-tpu", "--force", "--quiet", *WHERE)
    ]
    assert not (tmp_path / "state").exists()


def test_refused_input_is_not_tried_again_and_tries_are_bounded(tmp_path: Path) -> None:
    refused = Cloud(tmp_path / "refused", runs=[2]).active()
    done = refused("babysit.sh", "nq", "--", "prorank", "train")
    assert (done.returncode, done.stderr) == (2, "babysit: nq refused its input; see logs.sh nq\n")
    assert refused.received(0) == [["train"]]

    broken = Cloud(tmp_path / "broken", runs=[1, 76, 75, 1]).active()
    done = broken("babysit.sh", "nq", "--", "prorank", "train", RETRIES="3")
    assert (done.returncode, done.stderr) == (5, "babysit: nq did not end well after 3 tries; see logs.sh nq\n")
    assert [line.split("in ")[1] for line in done.stdout.splitlines()] == ["30 s", "60 s", "120 s"]
    assert len(broken.received(0)) == 4


def test_the_log_of_a_worker(tmp_path: Path) -> None:
    shown = Cloud(tmp_path)("logs.sh", "--dry-run", "nq", "3").stdout
    assert "ssh my-tpu --worker=3 --command=tail\\ -n\\ 100\\ -F\\ ~/runs/nq/log" in shown


ALL = ["create.sh", "setup.sh", "run.sh", "babysit.sh", "logs.sh", "fetch.sh", "delete.sh"]


@pytest.mark.parametrize("script", ALL)
def test_each_script_tells_its_usage_without_any_names(tmp_path: Path, script: str) -> None:
    for option in ("-h", "--help"):
        done = Cloud(tmp_path / option)(script, option, **dict.fromkeys(NAMES, ""))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"Usage: {script}") and "shellcheck" not in done.stdout.split("\n\n")[0]
    assert len((SCRIPTS / script).read_text().splitlines()) <= 60
    assert (SCRIPTS / script).stat().st_mode & 0o111


@pytest.mark.parametrize(
    ("script", "words", "told"),
    [
        ("create.sh", ["--fast"], "create.sh: --fast: not known; see --help"),
        ("setup.sh", ["now"], "setup.sh: now: not known; see --help"),
        ("run.sh", ["nq", "prorank"], "run.sh: give a name and a command, as: run.sh RUN -- COMMAND ARGUMENT ..."),
        ("run.sh", ["n q", "--", "ls"], "run.sh: RUN=n q: letters, digits, _ and - only"),
        ("babysit.sh", ["nq"], "babysit.sh: give a name and a command, as: babysit.sh RUN -- COMMAND ARGUMENT ..."),
        ("logs.sh", [], "logs.sh: give the name of a run, as: logs.sh RUN"),
        ("fetch.sh", ["x"], "fetch.sh: give what to fetch and where to, as: fetch.sh gs://BUCKET/RUN/export ./export"),
        ("delete.sh", ["other"], "delete.sh: give the name of the TPU to delete it: delete.sh my-tpu"),
        ("delete.sh", [], "delete.sh: give the name of the TPU to delete it: delete.sh my-tpu"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, script: str, words: list[str], told: str) -> None:
    cloud = Cloud(tmp_path)
    done = cloud(script, *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told + "\n")
    assert cloud.calls == []


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_name_is_refused(tmp_path: Path, name: str) -> None:
    done = Cloud(tmp_path)("create.sh", **{name: ""})
    assert done.returncode == 2
    assert done.stderr == f"create.sh: {name} is not set; export it, or write {name}=VALUE into tpu_scripts/tpu.env\n"


def test_an_unknown_type_needs_an_image(tmp_path: Path) -> None:
    done = Cloud(tmp_path)("create.sh", ACCELERATOR_TYPE="v9-8")
    assert done.returncode == 2 and "ACCELERATOR_TYPE=v9-8: not v4-N, v5litepod-N, v5p-N or v6e-N" in done.stderr
    shown = Cloud(tmp_path / "set")("create.sh", "--dry-run", ACCELERATOR_TYPE="v9-8", RUNTIME_VERSION="new")
    assert "--runtime-version=new" in shown.stdout
