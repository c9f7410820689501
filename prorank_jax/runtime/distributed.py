"""One run in several processes: how they find one another, and how the rest end when one of them does.

JAX's coordination service connects the processes of a run. When one of them is gone it aborts the others with a stack
trace, from a thread of its own that no Python code can catch. So each process is a child of a small one that waits for
it, and turns that end into one line and an exit status. The parent never loads JAX.
"""

import os
import re
import signal
import socket
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

import numpy as np

from prorank_jax.errors import InputError

LOST = 76
"""Exit status: another process of the run ended, or could not be reached; start the run again."""
HEARTBEAT_SECONDS = 10
"""How long a process may be silent before the others take it for gone."""

_GOOGLE = "0x1ae0"
_TOLD = b"prorank ends with status "
_OF_THE_SERVICE = re.compile(rb"^[EFW]\d{4} .*(coordination_service|client\.h|preemption_sync_manager)")


class Group(NamedTuple):
    """The processes of a run: where the first of them listens, how many there are, and which one this is."""

    coordinator: str
    processes: int
    process: int


def read_group(coordinator: str | None, processes: int | None, process: int | None) -> Group | None:
    """The group that the options of a command name; None where they name none.

    Raises:
      InputError: some of the three are missing, or a value is out of range.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [option for option, value in given.items() if value is None]
    if coordinator is None or processes is None or process is None:
        if len(missing) < len(given):
            raise InputError(f"{missing[0]}: left out; a run of several processes takes {', '.join(given)}")
        return None
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator={coordinator}: not HOST:PORT, as 10.0.0.1:8476")
    if processes < 1 or not 0 <= process < processes:
        raise InputError(f"--process={process}: with --processes={processes} use 0 to {max(processes, 1) - 1}")
    return Group(coordinator, processes, process)


def on_cloud_tpu(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether this machine has TPUs, and JAX may and can use them."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms.split(",")) or find_spec("libtpu") is None:
        return False
    return any(vendor.read_text().strip() == _GOOGLE for vendor in devices.glob("*/vendor"))


def join(group: Group | None, seconds: int) -> None:
    """Connects this process with the others of its run. Before anything asks JAX for its devices.

    Args:
      group: None where Cloud TPU knows by itself which machines belong together.
      seconds: how long to wait for the others.

    Raises:
      InputError: nothing answers where the first process should be. Where that waits in vain for the others, JAX
        aborts it (see `supervised`).
    """
    import jax

    connect = partial(
        jax.distributed.initialize,
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=2 * HEARTBEAT_SECONDS,
    )
    if group is None:
        connect()
        return
    if group.process > 0:
        _wait_for(group.coordinator, seconds)
    # Between CPUs JAX has no collectives of its own; where there are accelerators nobody asks for this.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    connect(*group)


def _wait_for(coordinator: str, seconds: float) -> None:
    """Returns once something listens there: JAX's own client does not tell a wrong address from a slow one."""
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=max(end - time.monotonic(), 0.1)).close()
            return
        except OSError as error:
            if time.monotonic() + 0.5 > end:
                raise InputError(
                    f"--coordinator={coordinator}: no answer within {seconds} s ({error.strerror or error}); give the "
                    "address of process 0, and start that too"
                ) from None
            time.sleep(0.5)


def check_agreement(texts: Mapping[str, str]) -> None:
    """Refuses a run whose processes were not started with the same; each makes this call.

    Args:
      texts: what must be the same, by what it is called.

    Raises:
      InputError: on all processes, where one has another text than process 0.
    """
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return
    own = np.array([zlib.crc32(text.encode()) for text in texts.values()], np.uint32)
    every = multihost_utils.process_allgather(own)
    for name, sums in zip(texts, np.asarray(every).T, strict=True):
        if (others := np.flatnonzero(sums != sums[0])).size:
            raise InputError(f"{name}: process {others[0]} has another than process 0; start all with the same")


def supervised(work: Callable[[], int]) -> int:
    """Runs `work` in a child process and returns its exit status, or `LOST` where the run's other processes failed it.

    What C++ libraries print passes through the parent, which leaves the trace of the service out. Signals to end are
    passed on to the child.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work_apart(work, writing)
    os.close(writing)
    with _passed_on(child), os.fdopen(reading, "rb") as lines:
        told, trace = _passed_through(lines)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if told is not None:
        return told
    if trace and status == -signal.SIGABRT:
        print(
            "prorank: another process of the run ended or cannot be reached; start the same command again in all of "
            "them to go on from the last checkpoint",
            file=sys.stderr,
        )
        return LOST
    sys.stderr.buffer.write(b"".join(trace))
    return status if status >= 0 else 128 - status


def _work_apart(work: Callable[[], int], pipe: int) -> NoReturn:
    """The child: Python keeps the standard error that there was, libraries in C++ get the pipe."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    os.dup2(pipe, 2)
    try:
        status = _status_of(work)
        sys.stdout.flush()
        os.write(pipe, b"%s%d\n" % (_TOLD, status))
        # Those that leave first would look as if they had died: all wait for all, if only for so long.
        _leave()
    finally:
        os._exit(1)


def _status_of(work: Callable[[], int]) -> int:
    import jax

    try:
        return work()
    except jax.errors.JaxRuntimeError:
        traceback.print_exc()
        # A collective that lost its other end may fail before the service has noticed, which then ends this process.
        time.sleep(3 * HEARTBEAT_SECONDS)
        return 1
    except Exception:
        traceback.print_exc()
        return 1


def _leave() -> None:
    import jax

    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def _passed_through(lines: Iterable[bytes]) -> tuple[int | None, list[bytes]]:
    """Prints lines up to the first of the coordination service; returns the status that the child told, where it did,
    and the lines from there on."""
    told, held = None, list[bytes]()
    for line in lines:
        if line.startswith(_TOLD):
            told = int(line.removeprefix(_TOLD))
        elif held or _OF_THE_SERVICE.match(line):
            held.append(line)
        else:
            sys.stderr.buffer.write(line)
            sys.stderr.flush()
    return told, held


@contextmanager
def _passed_on(child: int) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
