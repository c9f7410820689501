"""The launch scripts against a stand-in for gcloud, which notes what it is asked and runs what workers are told."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_gcloud import NAMES, SCRIPTS, Cloud, serving

WHERE = ["--project=my project", "--zone=us-west4-a"]


@pytest.fixture(scope="module", autouse=True)
def google() -> Iterator[None]:
    with serving():
        yield


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
    for worker in ("worker0", "worker1"):
        (tmp_path / worker / "prorank_jax" / ".set_up").unlink()
    done = cloud("setup.sh")
    assert (done.returncode, done.stderr) == (0, "")
    for worker in ("worker0", "worker1"):
        assert (tmp_path / worker / "prorank_jax" / "setup.py").is_file()
        assert (tmp_path / worker / "prorank_jax" / ".set_up").is_file()


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
    cloud.program("bin", "tmux", "#!/bin/sh\n[ $1 = has-session ]\n")
    done = cloud("run.sh", "nq", "--", "prorank", "train")
    assert (done.returncode, done.stderr) == (4, "run.sh: nq is still going; see logs.sh nq\n")


def test_a_run_is_seen_through_two_preemptions(tmp_path: Path) -> None:
    # Preempted with a checkpoint; then the TPU itself is taken away; then it ends well.
    cloud = Cloud(tmp_path, runs=[75, "gone", 0], create=["PROVISIONING", "ACTIVE"])
    done = cloud("babysit.sh", "nq", "--", "prorank", *HARD)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("babysit: ")]
    assert told == [
        "babysit: nq ended (75 75 ); try 1 of 20 in 30 s",
        "babysit: my-tpu is SUSPENDING, and its workers do not answer; nothing is changed",
        "babysit: my-tpu was SUSPENDED, and is made anew; try 2 of 20 in 60 s",
        "babysit: nq is done",
    ]
    # On the new TPU the same command goes on, with the same words.
    assert cloud.received(0) == [HARD]
    made = [verb for verb in cloud.verbs if verb.endswith(("create", "delete", "scp"))]
    assert made == [
        *("queued-resources create", "tpu-vm scp"),
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
    assert cloud.request is None


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
