"""Rendering templates in a process that may not take much: templates come with models, from anybody.

The process is started for the first template and ends with this one. Where it ends, or does not answer, the next
template gets a new one.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

SECONDS = 5.0
"""Of a processor, for one template; they take a thousandth."""
WAIT_SECONDS = 60.0
"""For the start of the process, and for an answer: nothing is known of a template that a busy machine keeps waiting."""
TEMPLATE_CHARACTERS = 1 << 20
_BLOCK = 1 << 16

_PROGRAM = Path(__file__).with_name("rendering.py")


class _Renderer:
    """The process, or none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of `rendering.answer`; raises TemplateError where there is none."""
        line = json.dumps({**asked, "seconds": SECONDS}).encode() + b"\n"
        with self._lock:
            try:
                process = self._ready()
                try:
                    answered = self._exchange(process, line)
                except (OSError, EOFError):
                    raise TemplateError(f"it takes more than {SECONDS:g} s, or more memory than it may") from None
            except BaseException:
                # An answer that nobody waits for any longer must not be taken for the next one.
                self.end()
                raise
        told: dict[str, Any] = json.loads(answered)
        return told

    def _ready(self) -> "subprocess.Popen[bytes]":
        """The process, once it can render."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.end()
        # -P: the package's own modules must not stand before those of the standard library.
        command = [sys.executable, "-P", str(_PROGRAM)]
        process = self._process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            self._exchange(process, b"")
        except EOFError:
            raise _not_rendered(f"ends at its start (exit status {process.wait()})") from None
        return process

    def _exchange(self, process: "subprocess.Popen[bytes]", line: bytes) -> bytes:
        """The line that answers a line; raises EOFError or OSError where the process ends."""
        assert process.stdin is not None and process.stdout is not None
        rest = memoryview(line)
        while rest:
            rest = rest[process.stdin.write(rest) :]
        end, answered = time.monotonic() + WAIT_SECONDS, bytearray()
        while not answered.endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(end - time.monotonic(), 0.0))
            if not ready:
                raise _not_rendered(f"does not answer within {WAIT_SECONDS:g} s")
            block = os.read(process.stdout.fileno(), _BLOCK)
            if not block:
                raise EOFError
            answered += block
        return bytes(answered)

    def end(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def forget(self) -> None:
        """In a fork: leaves the process to the parent."""
        self._lock = threading.Lock()
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            # It is no child of this process, which need not wait for it.
            process.returncode = 0


def _not_rendered(why: str) -> TemplateError:
    return TemplateError(f"it was not rendered: the process for that {why}; is the machine too busy, or out of memory?")


_RENDERER = _Renderer()
atexit.register(_RENDERER.end)
os.register_at_fork(after_in_child=_RENDERER.forget)


def render(template: str, variables: Mapping[str, Any]) -> str:
    """What a template prints.

    Args:
      variables: what JSON can say.

    Raises:
      jinja2.TemplateError: the template is malformed (TemplateSyntaxError, with the line), fails in any way, or takes
        more time, memory or text than a prompt can need.
    """
    if len(template) > TEMPLATE_CHARACTERS:
        raise TemplateError(f"it has {len(template)} characters, more than {TEMPLATE_CHARACTERS}")
    answered = _RENDERER.ask({"template": template, "variables": variables})
    if "text" in answered:
        return str(answered["text"])
    if answered.get("line"):
        raise TemplateSyntaxError(answered["error"], answered["line"])
    raise TemplateError(answered["error"])
