"""A training run is seen through whatever gcloud answers: no TPU that runs is deleted, no request loses its place."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_gcloud import QUEUED, Answer, Cloud, serving, verb_of

ERRORS = {
    "503": Answer(1, error="ERROR: (gcloud.compute.tpus) UNAVAILABLE: The service is currently unavailable.\n"),
    "token": Answer(
        1, error="ERROR: (gcloud.compute.tpus) There was a problem refreshing your current auth tokens: invalid_grant\n"
    ),
    "empty": Answer(),
    "permission": Answer(
        1, error="ERROR: (gcloud.compute.tpus) PERMISSION_DENIED: permission is missing on it (or it may not exist).\n"
    ),
    "network": Answer(1, error="ERROR: gcloud crashed (ConnectionError): Max retries exceeded\n"),
}
WHERE = ["--project=my project", "--zone=us-west4-a"]
TRAIN = ("nq", "--", "prorank", "train")


@pytest.fixture(scope="module", autouse=True)
def google() -> Iterator[None]:
    with serving():
        yield


def watched(cloud: Cloud, **names: str) -> tuple[int, str]:
    """The status and the last line of a babysitter, after which nothing is harmed."""
    done = cloud.without_checkout()("babysit.sh", *TRAIN, WAIT_UNIT="0", **names)
    assert cloud.harm == [] and not cloud.second_session
    return done.returncode, (done.stderr if done.returncode else done.stdout).splitlines()[-1]


@pytest.mark.parametrize("done", [False, True], ids=["not-done", "done"])
def test_one_failed_answer_at_any_call_is_got_over(tmp_path: Path, done: bool) -> None:
    """Every call fails once: before what it was to do is done, or after, when only the answer is lost."""
    number, reached = 0, True
    while reached:
        number += 1
        cloud = Cloud(tmp_path / str(number), create=["PROVISIONING", "ACTIVE"], runs=[(0, 1)], workers=1)
        cloud.suspend()
        error = list(ERRORS.values())[number % len(ERRORS)]

        def fail(words: list[str], cloud: Cloud = cloud, number: int = number, error: Answer = error) -> Answer | None:
            return error if len(cloud.calls) == number else None

        if done:
            cloud.after = fail
        else:
            cloud.before = fail
        assert watched(cloud) == (0, "babysit: nq is done"), cloud.calls[:number]
        reached = len(cloud.calls) >= number
        # The request that was suspended, and no other.
        assert cloud.request == "ACTIVE"
        assert cloud.verbs.count("queued-resources delete") <= 2
    assert number > 15


@pytest.mark.parametrize("error", ERRORS)
def test_a_run_out_of_sight_is_left_as_it_is(tmp_path: Path, error: str) -> None:
    cloud = Cloud(tmp_path, runs=[(0, 5)]).active()
    cloud.before = lambda words: ERRORS[error]
    status, line = watched(cloud, UNREACHABLE_MINUTES="2")
    assert (status, line) == (6, "babysit: my-tpu was out of reach for 2 minutes and is left as it is")
    assert set(cloud.verbs) == {"tpu-vm ssh", "queued-resources describe"} and cloud.request == "ACTIVE"


def test_a_run_is_found_again_after_it_was_out_of_sight(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, runs=[(0, 4)]).active()
    cloud.before = lambda words: ERRORS["network"] if 5 < len(cloud.calls) < 100 else None
    assert watched(cloud) == (0, "babysit: nq is done")
    assert cloud.received(0) == [["train"]]


def test_workers_that_do_not_answer_are_waited_for(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, runs=[(0, 4)]).active()
    lost = Answer(255, "", "ssh: connect to host 10.0.0.1 port 22: Connection timed out\n")
    cloud.before = lambda words: lost if words[3] == "ssh" and 5 < len(cloud.calls) < 50 else None
    assert watched(cloud) == (0, "babysit: nq is done")
    assert cloud.received(0) == [["train"]]
    assert {verb for verb in cloud.verbs if not verb.endswith(("ssh", "describe"))} == set()


@pytest.mark.parametrize("state", [*QUEUED, "REPAIRING"])
def test_a_request_in_the_queue_keeps_its_place(tmp_path: Path, state: str) -> None:
    """The one that lasts longest for an hour; a state that nobody knows is waited for, too."""
    cloud = Cloud(tmp_path, create=[*[state] * (60 if state == "PROVISIONING" else 3), "ACTIVE"])
    cloud.answer(["compute", "tpus", "queued-resources", "create", "my-tpu"])
    assert watched(cloud) == (0, "babysit: nq is done")
    assert cloud.verbs.count("queued-resources create") == 1 and "queued-resources delete" not in cloud.verbs


def write(path: Path, text: str) -> None:
    path.write_text(text)


def at(verb: str, number: int, act: Callable[[], None], cloud: Cloud) -> Callable[[list[str]], None]:
    """Does something at the `number`-th call of a kind."""

    def before(words: list[str]) -> None:
        if verb_of(words) == verb and cloud.verbs.count(verb) == number:
            act()

    return before


@pytest.mark.parametrize(
    ("verb", "number"), [("tpu-vm scp", 1), ("tpu-vm ssh", 3), ("tpu-vm ssh", 4), ("tpu-vm ssh", 6), ("tpu-vm ssh", 7)]
)
@pytest.mark.parametrize("how", ["preempt", "vanish", "node"])
def test_a_tpu_that_goes_away_is_made_anew(tmp_path: Path, verb: str, number: int, how: str) -> None:
    """While it is set up, when the run starts, and while it is going: preempted, or deleted by hand in two ways."""
    cloud = Cloud(tmp_path, create=["ACCEPTED", "PROVISIONING", "ACTIVE"], runs=[(0, 3)])
    acts = {"preempt": cloud.preempt, "vanish": cloud.vanish, "node": cloud.lose_node}
    cloud.before = at(verb, number, acts[how], cloud)
    assert watched(cloud) == (0, "babysit: nq is done")
    assert cloud.verbs.count("queued-resources create") == 2
    assert cloud.verbs.count("queued-resources delete") == (0 if how == "vanish" else 1)
    assert cloud.received(0) == [["train"]]


def test_a_set_up_that_fails_is_done_again_before_the_start(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    # The installation breaks off, after the checkout has arrived.
    cloud.before = lambda words: (
        ERRORS["503"] if "uv venv" in words[-3] and cloud.verbs.count("tpu-vm scp") < 3 else None
    )
    assert watched(cloud) == (0, "babysit: nq is done")
    assert cloud.verbs.count("tpu-vm scp") == 3


def test_a_quota_that_is_used_up_ends_the_tries(tmp_path: Path) -> None:
    full = Answer(1, error="ERROR: (gcloud.compute.tpus) RESOURCE_EXHAUSTED: Quota limit 'TPUV5s' has been exceeded.\n")
    cloud = Cloud(tmp_path / "full")
    cloud.before = lambda words: full if words[3] == "create" else None
    status, line = watched(cloud, RETRIES="2")
    assert (status, line) == (5, "babysit: nq did not end well after 2 tries; see logs.sh nq")
    assert "queued-resources delete" not in cloud.verbs
    cloud = Cloud(tmp_path / "later")
    cloud.before = lambda words: full if words[3] == "create" and cloud.verbs.count(verb_of(words)) < 8 else None
    assert watched(cloud) == (0, "babysit: nq is done")


def test_hours_in_the_queue_use_up_no_tries(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, create=[*["WAITING_FOR_RESOURCES"] * 12, "ACTIVE"])
    assert watched(cloud, RETRIES="0", CREATE_MINUTES="1") == (0, "babysit: nq is done")
    assert cloud.verbs.count("queued-resources create") == 1


def test_a_request_that_is_refused_uses_up_a_try_however_short_the_wait(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    cloud.before = lambda words: ERRORS["permission"] if words[3] == "create" else None
    assert watched(cloud, RETRIES="1", CREATE_MINUTES="0")[0] == 5


@pytest.mark.parametrize("verb", ["tpu-vm ssh", "queued-resources describe", "tpu-vm describe"])
def test_a_look_that_hangs_is_given_up(tmp_path: Path, verb: str) -> None:
    """While the run is going; what gcloud has started is ended with it."""
    cloud = Cloud(tmp_path, runs=[(0, 3)]).active()
    hung: list[list[str]] = []

    def before(words: list[str]) -> Answer | None:
        if len(cloud.calls) < 5:
            return None
        if not hung and verb_of(words) == verb:
            hung.append(words)
            return Answer(waits_for="sleep 90")
        # The workers are out of reach until all the looks were made.
        return None if hung or verb_of(words) != "tpu-vm ssh" else ERRORS["network"]

    cloud.before = before
    assert watched(cloud, LOOK_SECONDS="2") == (0, "babysit: nq is done")
    assert hung and cloud.received(0) == [["train"]]


@pytest.mark.parametrize("number", [3, 6, 7], ids=["set-up", "look", "start"])
def test_a_call_that_hangs_is_given_up_and_made_again(tmp_path: Path, number: int) -> None:
    cloud = Cloud(tmp_path, runs=[(0, 2)])
    cloud.before = lambda words: (
        Answer(waits_for="exec sleep 90")
        if verb_of(words) == "tpu-vm ssh" and cloud.verbs.count("tpu-vm ssh") == number
        else None
    )
    assert watched(cloud, LOOK_SECONDS="2", CALL_SECONDS="2") == (0, "babysit: nq is done")
    assert cloud.received(0) == [["train"]]


def test_a_worker_that_hangs_alone_is_ended_after_a_while(tmp_path: Path) -> None:
    """The other ended with an error, which should have ended this one within seconds."""
    cloud = Cloud(tmp_path, runs=[(0, 10000), (0, 2)]).active()

    def after(words: list[str]) -> None:
        if "has-session" in words[-3] and len(cloud.calls) == 6:
            write(cloud.homes[0] / "runs" / "nq" / "status", "1\n")
            (cloud.homes[0] / "looks").unlink()

    cloud.after = after
    assert watched(cloud, RETRIES="1") == (0, "babysit: nq is done")
    assert cloud.received(0) == cloud.received(1) == [["train"], ["train"]]
    assert [call for call in cloud.calls if "kill-session" in call[-3]] == [
        [*("compute", "tpus", "tpu-vm", "ssh", "my-tpu"), "--worker=all", "--command=tmux kill-session -t =nq", *WHERE]
    ]
    # Not before a quarter of an hour.
    assert [("kill-session" in call[-3]) for call in cloud.calls].index(True) == 6 + 16


def test_a_worker_that_ends_a_little_later_is_waited_for(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, runs=[(0, 16)]).active()

    def after(words: list[str]) -> None:
        if len(cloud.calls) == 6:
            (cloud.homes[0] / "looks").unlink()

    cloud.after = after
    assert watched(cloud, RETRIES="0") == (0, "babysit: nq is done")


@pytest.mark.parametrize("status", [0, 255])
def test_a_run_is_not_done_while_a_worker_says_nothing(tmp_path: Path, status: int) -> None:
    cloud = Cloud(tmp_path, runs=[(0, 1)]).active()
    missing = Answer(status, "0\n")
    cloud.before = lambda words: missing if verb_of(words) == "tpu-vm ssh" and 4 < len(cloud.calls) < 10 else None
    assert watched(cloud) == (0, "babysit: nq is done")
    # It was looked at again, until both workers had told how they ended.
    assert len(cloud.calls) > 10 and cloud.received(0) == [["train"]]


@pytest.mark.parametrize("text", ["", "\0\0\0"], ids=["empty", "broken"])
def test_a_run_whose_status_is_not_written_is_started_again(tmp_path: Path, text: str) -> None:
    """As on a disk that is full."""
    cloud = Cloud(tmp_path, runs=[(0, 1), (0, 1)]).active()
    cloud.before = at("tpu-vm ssh", 5, lambda: write(cloud.homes[1] / "runs" / "nq" / "status", text), cloud)
    assert watched(cloud) == (0, "babysit: nq is done")
    assert cloud.received(0) == [["train"], ["train"]]


def test_a_set_up_that_leaves_no_mark_uses_up_tries(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    cloud.before = lambda words: Answer() if ".set_up" in words[-3] and "touch" in words[-3] else None
    assert watched(cloud, RETRIES="2") == (5, "babysit: nq did not end well after 2 tries; see logs.sh nq")
    assert cloud.verbs.count("tpu-vm scp") == 3


def test_a_request_that_a_person_made_anew_meanwhile_is_not_deleted(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    cloud.suspend()

    def after(words: list[str]) -> None:
        if len(cloud.calls) == 2:
            cloud.wait_in_queue("ACCEPTED", "ACCEPTED", "ACCEPTED", "ACTIVE")

    cloud.after = after
    assert watched(cloud) == (0, "babysit: nq is done")
    assert {"queued-resources create", "queued-resources delete"} & set(cloud.verbs) == set()


def test_what_became_of_a_tpu_that_does_not_answer_is_told(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path).active()
    stopped = {"tpu-vm ssh": ERRORS["network"], "tpu-vm describe": Answer(out="PREEMPTED\n")}
    cloud.before = lambda words: stopped.get(verb_of(words))
    status, told = watched(cloud, UNREACHABLE_MINUTES="1")
    assert (status, told) == (6, "babysit: my-tpu was out of reach for 1 minutes and is left as it is")
    done = cloud("babysit.sh", *TRAIN, UNREACHABLE_MINUTES="1")
    assert done.stdout == (
        "babysit: my-tpu is ACTIVE (TPU: PREEMPTED), and its workers do not answer; nothing is changed\n"
    )


def test_hours_of_training_renew_the_tries(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, runs=[(75, 60), (75, 60), (0, 1)], workers=1).active()
    assert watched(cloud, RETRIES="1") == (0, "babysit: nq is done")


@pytest.mark.parametrize("error", ERRORS)
def test_nothing_is_created_where_a_look_fails(tmp_path: Path, error: str) -> None:
    cloud = Cloud(tmp_path).active()
    cloud.before = lambda words: ERRORS[error]
    done = cloud("create.sh")
    assert done.returncode == 2 and set(cloud.verbs) == {"queued-resources describe"}
    told = ERRORS[error].error.strip() or "gcloud answers nothing"
    assert done.stderr.splitlines() == [
        f"create.sh: the state of my-tpu cannot be found out: {told}",
        "create.sh: nothing is created: my-tpu may exist; see the answer of gcloud above",
    ]


def test_a_look_that_fails_meanwhile_is_waited_out(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path, create=["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "ACTIVE"])
    cloud.before = lambda words: ERRORS["503"] if 3 < len(cloud.calls) < 20 else None
    done = cloud("create.sh")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-2:] == ["my-tpu: WAITING_FOR_RESOURCES", "my-tpu: ACTIVE"]
    assert cloud.verbs.count("queued-resources create") == 1


def test_nothing_is_started_on_workers_out_of_reach(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path).active()
    cloud.before = lambda words: ERRORS["503"] if len(cloud.calls) == 1 else None
    done = cloud("run.sh", *TRAIN)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        3,
        "run.sh: not all workers of my-tpu can be reached; nothing is started",
    )
    assert len(cloud.calls) == 1
