"""A stand-in for Google Cloud: one TPU of some workers, with real state, and a record of each call word for word.

`gcloud` on a script's PATH hands its words to the server in this process and does what it answers. A command for a
worker is run by bash in the worker's home, with stand-ins of tmux, prorank and python3 before all others.
"""

import os
import shlex
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SCRIPTS = Path(__file__).parents[1] / "tpu_scripts"
NAMES = {"TPU_NAME": "my-tpu", "PROJECT": "my project", "ZONE": "us-west4-a", "ACCELERATOR_TYPE": "v5litepod-8"}
QUEUED = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")

GCLOUD = """\
#!/usr/bin/env bash
exec 3<>"/dev/tcp/127.0.0.1/$FAKE_PORT"
printf '%s\\0' "$FAKE_CLOUD" "$#" "$@" >&3
mapfile -d '' -t program <&3
eval "${program[0]}"
"""
# A session has ended when it was started, but is shown as going for as many looks as its line of `runs` gives.
TMUX = """\
#!/usr/bin/env bash
looks=0
[[ ! -e ~/looks ]] || looks=$(<~/looks)
case $1 in
  has-session) ((looks > 0)) && echo $((looks - 1)) >~/looks ;;
  new-session)
    ((looks == 0)) || { touch "$FAKE_CLOUD/second" && exit 1; }
    bash -c "${@: -1}" ;;
  kill-session) ((looks > 0)) && rm -f ~/looks ~/runs/*/status ;;
esac
"""
PRORANK = """\
#!/usr/bin/env bash
printf '%s\\0' "$#" "$@" >>~/argv
[[ $1 != --help ]] || exit 0
echo "training ${HOME##*/}"
mapfile -t runs <"$FAKE_CLOUD/runs"
read -r end looks <<<"${runs[0]}"
echo "$looks" >~/looks
if [[ $HOME == */"$FAKE_LAST" ]]; then
  ((${#runs[@]} == 1)) || printf '%s\\n' "${runs[@]:1}" >"$FAKE_CLOUD/runs"
  [[ $end != gone ]] || touch "$FAKE_CLOUD/gone"
fi
[[ $end == gone ]] || exit "$end"
"""
PYTHON = """\
#!/bin/sh
[ "$*" = "-m uv venv --quiet --python 3.12 .venv" ] || exit 0
mkdir -p .venv/bin
ln -s /bin/true .venv/bin/python
ln -s "$FAKE_CLOUD/bin/prorank" .venv/bin/prorank
"""


class Answer(NamedTuple):
    """What a call of gcloud gives, once a program that it starts has ended."""

    status: int = 0
    out: str = ""
    error: str = ""
    waits_for: str = ":"


Hook = Callable[[list[str]], Answer | None]
"""What happens at a call; an answer takes the place of the call, or of its own answer."""


class Cloud:
    """A world of its own for one test.

    Args:
      create: the states that a new request goes through, one a look.
      runs: what the successive starts of a command come to, the last one again and again: an exit status, or "gone"
        for a TPU that is taken away; and for how many looks the session is going before that.
    """

    def __init__(
        self, folder: Path, create: Sequence[str] = ("ACTIVE",), runs: Sequence[object] = (0,), workers: int = 2
    ):
        self.folder, self.create = folder, create
        self.homes = [folder / f"worker{number}" for number in range(workers)]
        self.request: str | None = None
        """The state of the request."""
        self.node = False
        """Whether there is a TPU."""
        self.calls: list[list[str]] = []
        self.harm: list[str] = []
        """What must never be asked for: that a TPU that runs is deleted, or that a request loses its place."""
        self.before: Hook = lambda words: None
        self.after: Hook = lambda words: None
        self._coming: list[str] = []
        for place, programs in {"path": {"gcloud": GCLOUD}, "bin": {"tmux": TMUX, "prorank": PRORANK}}.items():
            for name, text in programs.items():
                self.program(place, name, text)
        self.program("bin", "python3", PYTHON)
        (folder / "runs").write_text("".join(f"{' '.join(map(str, _pair(end)))}\n" for end in runs))
        _SERVER.clouds[str(folder)] = self

    def program(self, place: str, name: str, text: str) -> None:
        """Puts a program on the PATH of the scripts (`path`) or of the workers (`bin`)."""
        (self.folder / place).mkdir(parents=True, exist_ok=True)
        (self.folder / place / name).write_text(text)
        (self.folder / place / name).chmod(0o755)

    def __call__(self, script: str, *words: str, **names: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | NAMES | {"WAIT_UNIT": "0", "TPU_ENV": "/nowhere"} | self._shared() | names
        environment |= {"PATH": f"{self.folder / 'path'}:{os.environ['PATH']}"}
        command = [str(SCRIPTS / script), *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)

    def active(self) -> "Cloud":
        """With a TPU that was created and set up."""
        self._become("ACTIVE")
        for home in self.homes:
            (home / "prorank_jax").mkdir()
            (home / "prorank_jax" / ".set_up").touch()
        return self

    def without_checkout(self) -> "Cloud":
        """With next to nothing for the checkout that is copied to the workers, which saves time."""
        with_nothing = 'for word; do [[ $word != --output=* ]] || tar -czf "${word#--output=}" -T /dev/null; done'
        self.program("path", "git", f"#!/usr/bin/env bash\n{with_nothing}\n")
        return self

    def preempt(self) -> None:
        """Takes the TPU away, as Google Cloud does with one that is spot."""
        self._become("SUSPENDING", "SUSPENDED")

    def suspend(self) -> None:
        """What is left of a request whose TPU was taken away."""
        self._become("SUSPENDED")

    def wait_in_queue(self, *states: str) -> None:
        """With a request that goes through these states, one a look."""
        self._become(*states)

    def vanish(self) -> None:
        """Deletes the request and the TPU, as a person does."""
        self._become(None)

    def lose_node(self) -> None:
        """Deletes the TPU alone; its request is still ACTIVE."""
        self._become(None)
        self.request = "ACTIVE"

    def received(self, worker: int) -> list[list[str]]:
        """The words of the commands that a worker was to run."""
        words = iter((self.homes[worker] / "argv").read_text().split("\0")[:-1])
        found = [[next(words) for _ in range(int(count))] for count in words]
        return [command for command in found if command != ["--help"]]

    @property
    def verbs(self) -> list[str]:
        return [verb_of(call) for call in self.calls]

    @property
    def second_session(self) -> bool:
        """Whether a session was started while there was one."""
        return (self.folder / "second").exists()

    def answer(self, words: list[str]) -> Answer:
        self.calls.append(words)
        return self.before(words) or self._after(words, self._do(words))

    def _after(self, words: list[str], answer: Answer) -> Answer:
        if (self.folder / "gone").exists():
            (self.folder / "gone").unlink()
            self.preempt()
        return self.after(words) or answer

    def _become(self, state: str | None, *coming: str) -> None:
        self.request, self._coming, had = state, list(coming), self.node
        self.node = state == "ACTIVE"
        for home in self.homes:
            if self.node and not had:
                home.mkdir()
            elif had and not self.node:
                shutil.rmtree(home)

    def _do(self, words: list[str]) -> Answer:
        options = dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))
        match [word for word in words if not word.startswith("--")]:
            case ["compute", "tpus", "queued-resources", "create", name]:
                if self.request is not None:
                    return refusal("ALREADY_EXISTS", f"Resource '{name}' already exists")
                self._become(*self.create)
            case ["compute", "tpus", "queued-resources", "describe", name]:
                if self.request is None:
                    return refusal("NOT_FOUND", f"Resource 'queuedResources/{name}' was not found")
                found = self.request
                if self._coming:
                    self._become(*self._coming)
                return Answer(out=f"{found}\n")
            case ["compute", "tpus", "tpu-vm", "describe", name]:
                return Answer(out="READY\n") if self.node else refusal("NOT_FOUND", f"'nodes/{name}' was not found")
            case ["compute", "tpus", "queued-resources", "delete", name]:
                if self.request is None:
                    return refusal("NOT_FOUND", f"Resource 'queuedResources/{name}' was not found")
                if self.node or self.request in QUEUED:
                    self.harm.append(f"{name} was to be deleted while it was {self.request}")
                # As Google Cloud does, whose own rule lets an ACCEPTED request go.
                if "force" not in options and (self.node or self.request in set(QUEUED) - {"ACCEPTED"}):
                    return refusal("FAILED_PRECONDITION", f"{name} is {self.request}")
                self._become(None)
            case ["compute", "tpus", "tpu-vm", "ssh" | "scp", *_] if not self.node:
                return refusal("NOT_FOUND", "'nodes/my-tpu' was not found")
            case ["compute", "tpus", "tpu-vm", "ssh", _]:
                chosen = self.homes if options["worker"] == "all" else [self.homes[int(options["worker"])]]
                done = [self._shell(home, options["command"]) for home in chosen]
                return Answer(max(d.status for d in done), "".join(d.out for d in done), "".join(d.error for d in done))
            case ["compute", "tpus", "tpu-vm", "scp", source, target] if ":" in target:
                for home in self.homes:
                    shutil.copy(source, home / target.split(":")[1])
            case ["compute", "tpus", "tpu-vm", "scp", source, target]:
                shutil.copytree(self.homes[0] / source.split(":")[1], target)
            case ["storage", "rsync", source, target]:
                shutil.copytree(self.folder / "bucket" / source.removeprefix("gs://"), target, dirs_exist_ok=True)
            case _:
                return Answer(2, error=f"ERROR: (gcloud) Invalid choice: {words}\n")
        return Answer()

    def _shell(self, home: Path, command: str) -> Answer:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = os.environ | self._shared() | {"HOME": str(home), "PATH": path, "FAKE_LAST": self.homes[-1].name}
        done = subprocess.run(
            ["bash", "-c", command], cwd=home, env=environment, capture_output=True, text=True, check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def _shared(self) -> dict[str, str]:
        return {"FAKE_CLOUD": str(self.folder), "FAKE_PORT": str(_SERVER.server_address[1])}


def refusal(code: str, message: str) -> Answer:
    return Answer(1, error=f"ERROR: (gcloud.compute.tpus) {code}: {message}\n")


def verb_of(call: list[str]) -> str:
    return " ".join(call[2:4]) if call[0] == "compute" else " ".join(call[:2])


def _pair(end: object) -> tuple[object, object]:
    return (end[0], end[1]) if isinstance(end, tuple) else (end, 0)


class _Server(socketserver.TCPServer):
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.clouds: dict[str, Cloud] = {}


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        cloud, count = self._word(), int(self._word())
        status, out, error, waits_for = self.server.clouds[cloud].answer([self._word() for _ in range(count)])
        program = f"printf %s {shlex.quote(out)}; printf %s {shlex.quote(error)} >&2; {waits_for}; exit {status}"
        self.wfile.write(program.encode())

    def _word(self) -> str:
        word = bytearray()
        while (byte := self.rfile.read(1)) not in (b"\0", b""):
            word += byte
        return word.decode()


_SERVER: _Server


@contextmanager
def serving() -> Iterator[None]:
    """Answers gcloud of all the worlds that are made in the block."""
    global _SERVER
    with _Server() as _SERVER:
        thread = threading.Thread(target=_SERVER.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            _SERVER.shutdown()
            thread.join()
