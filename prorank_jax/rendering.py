"""Renders templates for `sandbox.py`, in a process of its own: one line of JSON in, one out, until the input ends.

A first line out says that it is ready. The environment is that of transformers. What a template may reach is Jinja's
sandbox's to say; what it may take of the machine is the operating system's: memory, and a processor's time, at whose
end it ends this process. It imports Jinja alone.
"""

import datetime
import json
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2 import nodes as jinja_nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 1 << 30
TEXT_CHARACTERS = 1 << 20


class _Generation(Extension):
    """`{% generation %}` marks an answer for training masks; here it prints what it holds."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[jinja_nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> str:
    raise TemplateError(message)


def _tojson(value: object, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(form: str) -> str:
    # Some chat templates print today's date. A prompt must be the same tomorrow, so it gets the
    # date that Llama 3.1's template falls back to.
    return datetime.date(2024, 7, 26).strftime(form)


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
)
_ENVIRONMENT.filters["tojson"] = _tojson
_ENVIRONMENT.globals["raise_exception"] = _raise_exception
_ENVIRONMENT.globals["strftime_now"] = _strftime_now


def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a template gives with its variables: `text`; or `error`, with a `line` where its syntax is wrong."""
    try:
        text = _ENVIRONMENT.from_string(asked["template"]).render(asked["variables"])
    except TemplateSyntaxError as error:
        return {"error": error.message, "line": error.lineno}
    except TemplateError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"it takes more than {MEMORY_BYTES >> 20} MiB of memory"}
    except Exception as error:  # an expression of the template may raise anything
        return {"error": f"{type(error).__name__}: {error}"}
    if len(text) > TEXT_CHARACTERS:
        return {"error": f"it prints {len(text)} characters, more than {TEXT_CHARACTERS}"}
    return {"text": text}


def _main() -> None:
    # Nothing of this is needed to render; a system without one of the limits does without it.
    limits = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NOFILE": 16}
    for name, most in limits.items():
        with suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (most, most))
    # By default this signal ends a process; the one that started this process may have had it ignored.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        # The time that a busy machine keeps this process waiting does not count.
        signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
        answered = json.dumps(answer(asked))
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        print(answered, flush=True)


if __name__ == "__main__":
    _main()
