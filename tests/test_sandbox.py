"""Templates that take too much or reach too far are refused in seconds, and cost this process nothing."""

import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jinja2 import TemplateError, TemplateSyntaxError

from prorank_jax import sandbox
from prorank_jax.sandbox import render


def processor_seconds() -> float:
    """What the processes took that have ended."""
    taken = resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken.ru_utime + taken.ru_stime


def refused(template: str) -> str:
    with pytest.raises(TemplateError) as caught:
        render(template, {"messages": [{"role": "query", "content": "q"}]})
    return str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10**10 }}",
        "{{ 'a' | center(10**10) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    ],
)
def test_memory_is_bounded(template: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refused(template) == "it takes more than 1024 MiB of memory"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
        "{{ 7**(9**9) }}",
    ],
)
def test_time_is_bounded_and_the_next_template_is_rendered(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    # What the process took for the templates of other tests is no part of it.
    sandbox._RENDERER.end()
    before = processor_seconds()
    assert refused(template) == "it takes more than 0.5 s, or more memory than it may"
    # Of a processor, the start of the process included: how long that is by the clock is the machine's load to say.
    assert 0.4 < processor_seconds() - before < 3
    assert render("{{ 1 + 1 }}", {}) == "2"


@pytest.fixture
def slow_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that takes a second before it can render."""
    program = tmp_path / "slow.py"
    program.write_text(
        f"import runpy, time\ntime.sleep(1)\nrunpy.run_path({str(sandbox._PROGRAM)!r}, run_name='__main__')"
    )
    monkeypatch.setattr(sandbox, "_PROGRAM", program)
    sandbox._RENDERER.end()
    yield
    sandbox._RENDERER.end()


def test_the_start_of_the_process_is_no_part_of_the_time(slow_start: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    assert render("{{ 1 + 1 }}", {}) == "2"
    assert refused("{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3).startswith("it takes more than 0.5 s")


def test_a_busy_machine_does_not_refuse_a_template(monkeypatch: pytest.MonkeyPatch) -> None:
    render("a", {})
    process = sandbox._RENDERER._process
    assert process is not None
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    # What a process is kept waiting for is not what it takes.
    process.send_signal(signal.SIGSTOP)
    threading.Timer(0.8, process.send_signal, (signal.SIGCONT,)).start()
    assert render("{{ 1 + 1 }}", {}) == "2"
    # Nor do many templates take together what one may.
    assert [render("{% for i in range(99999) %}{% endfor %}a", {}) for _ in range(30)] == ["a"] * 30


def test_a_process_that_does_not_start_is_reported_as_such(slow_start: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WAIT_SECONDS", 0.2)
    busy = "is the machine too busy, or out of memory?"
    assert refused("a") == f"it was not rendered: the process for that does not answer within 0.2 s; {busy}"
    monkeypatch.setattr(sandbox, "WAIT_SECONDS", 60.0)
    monkeypatch.setattr(sandbox, "_PROGRAM", sandbox._PROGRAM.with_name("missing.py"))
    assert refused("a") == f"it was not rendered: the process for that ends at its start (exit status 2); {busy}"
    monkeypatch.undo()
    assert render("a", {}) == "a"


def test_the_text_is_bounded() -> None:
    assert refused("{{ 'a' * (2**20 + 1) }}") == "it prints 1048577 characters, more than 1048576"
    assert refused("a" * (2**20 + 1)) == "it has 1048577 characters, more than 1048576"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
        ("{{ cycler.__init__.__globals__ }}", "access to attribute '__init__' of 'type' object is unsafe."),
        ("{{ messages.append(1) }}", "access to attribute 'append' of 'list' object is unsafe."),
        ("{% include '/etc/hostname' %}", "TypeError: no loader for this environment specified"),
        ("{% import 'os' as os %}", "TypeError: no loader for this environment specified"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_a_template_reaches_for_nothing(template: str, told: str) -> None:
    assert refused(template).startswith(told)


def test_what_is_hidden_is_empty() -> None:
    hidden = "{{ ''|attr('__class__') }}{{ self._TemplateReference__context }}{{ '{0.__class__}'.format(1) }}"
    assert render(hidden + "|{{ nothing }}", {}) == "|"


def test_a_mistake_has_its_line() -> None:
    with pytest.raises(TemplateSyntaxError) as caught:
        render("one\n{% if %}", {})
    assert caught.value.lineno == 2


def test_texts_come_back_as_they_were() -> None:
    text = "a\r\n\u2028é😀\0\ud800\u202e"
    assert render("{{ x }}", {"x": text}) == text


def test_threads_get_their_own_answers() -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: render("{{ i }}", {"i": i}), range(200))) == [str(i) for i in range(200)]


def test_a_fork_has_a_process_of_its_own() -> None:
    # In a process without the threads of JAX, which a fork would leave behind.
    program = """
        import os
        from prorank_jax.sandbox import _RENDERER, render
        render("a", {})
        child = os.fork()
        assert render("{{ x }}", {"x": child}) == str(child)
        if child == 0:
            _RENDERER.end()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert render("parent", {}) == "parent"
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(program)], check=True, timeout=60)


def test_a_process_that_is_gone_is_replaced() -> None:
    render("a", {})
    process = sandbox._RENDERER._process
    assert process is not None
    process.kill()
    process.wait()
    assert render("a", {}) == "a"
