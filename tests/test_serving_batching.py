"""The batcher: who shares a batch, who waits, and that each work gets its own scores or its own error."""

import re
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import FakeReranker, eventually, known_score, known_tokens

from prorank_jax.errors import InputError
from prorank_jax.serving.batching import Batcher, Busy, Stopping, Work, shared
from prorank_jax.serving.limits import MIB, Limits
from prorank_jax.serving.meters import Meters


@pytest.fixture
def reranker() -> FakeReranker:
    return FakeReranker()


@pytest.fixture
def batcher(reranker: FakeReranker) -> Iterator[Batcher]:
    # One thread takes work in an order that is known.
    made = Batcher(reranker, Meters(), queue=2000, batch=8, threads=1)
    yield made
    made.stop()


def pairs(query: str, count: int) -> list[tuple[str, str]]:
    return [(query, f"document {number}") for number in range(count)]


def scores(work: Work) -> list[float]:
    return work.future.result(timeout=30).tolist()


def known(query: str, count: int, instruction: str | None = None) -> list[float]:
    return [float(known_score(*pair, instruction)) for pair in pairs(query, count)]


@pytest.mark.parametrize(
    ("sizes", "batch", "taken"),
    [
        ([1, 100, 2], 8, [1, 5, 2]),
        ([100], 8, [8]),
        ([100, 100, 100], 8, [4, 2, 2]),
        ([2, 2], 8, [2, 2]),
        ([9] * 10, 8, [1] * 8),
    ],
)
def test_a_batch_is_shared(sizes: list[int], batch: int, taken: list[int]) -> None:
    queue = deque(Work(pairs("q", size), None) for size in sizes)
    assert [len(places) for _, places in shared(queue, batch)] == taken


def test_works_of_another_instruction_wait() -> None:
    queue = deque(Work(pairs("q", 1), instruction) for instruction in ("a", None, "a", "b"))
    assert [work for work, _ in shared(queue, 8)] == [queue[0], queue[2]]


def test_a_work_of_many_pairs_keeps_nobody_waiting(reranker: FakeReranker, batcher: Batcher) -> None:
    with reranker.paused():
        large = batcher.submit(pairs("large", 1000), None)
        assert reranker.begun.wait(30)
        small = [batcher.submit(pairs(f"small {number}", 2), None) for number in range(3)]
    assert [scores(one) for one in small] == [known(f"small {number}", 2) for number in range(3)]
    assert scores(large) == known("large", 1000)
    for work, query, count in ((large, "large", 1000), *((one, f"small {n}", 2) for n, one in enumerate(small))):
        assert work.tokens == sum(known_tokens(*pair) for pair in pairs(query, count))
    # The batch behind the one that was being computed has all of the three and two of the large one.
    assert sorted(query for query, _ in reranker.calls[1]) == sorted(
        ["large"] * 2 + [f"small {number}" for number in range(3) for _ in range(2)]
    )


def test_instructions_take_turns(reranker: FakeReranker, batcher: Batcher) -> None:
    with reranker.paused():
        works = [batcher.submit(pairs("q", 20), instruction) for instruction in ("a", "b")]
        small = batcher.submit(pairs("r", 1), "b")
    assert scores(small) == known("r", 1, "b")
    assert [scores(work) for work in works] == [known("q", 20, "a"), known("q", 20, "b")]
    # 20 of `a` in three batches, 21 of `b` in three; the one of `r` in the second call.
    assert len(reranker.calls) == 6 and ("r", "document 0") in reranker.calls[1]


def test_64_threads_get_their_own_scores(reranker: FakeReranker) -> None:
    batcher = Batcher(reranker, Meters(), queue=10**6, batch=16)
    reranker.seconds = 0.002

    def ask(number: int) -> None:
        for count in (1, 3, 40, 1, 17):
            instruction = f"i{number % 3}"
            work = batcher.submit(pairs(f"q{number}", count), instruction)
            assert scores(work) == known(f"q{number}", count, instruction)

    with ThreadPoolExecutor(64) as pool:
        for asked in [pool.submit(ask, number) for number in range(64)]:
            asked.result()
    batcher.stop()
    assert sum(map(len, reranker.calls)) == 64 * 62
    assert len(reranker.calls) < 64 * 5  # less than one for each of the requests, which alone take 64 * 8


def test_an_error_is_of_the_work_that_made_it(reranker: FakeReranker, batcher: Batcher) -> None:
    with reranker.paused():
        batcher.submit(pairs("q", 1), None)
        assert reranker.begun.wait(30)
        bad, nan = batcher.submit([("q", "fail")], None), batcher.submit([("q", "nan")], None)
        good = batcher.submit(pairs("q", 2), None)
        refused = [batcher.submit(pairs("q", 20), "none") for _ in range(2)]
    assert scores(good) == known("q", 2)
    # Computed twice, with the others and alone, and counted once.
    assert good.tokens == sum(known_tokens(*pair) for pair in pairs("q", 2))
    with pytest.raises(RuntimeError, match="out of memory"):
        scores(bad)
    with pytest.raises(FloatingPointError, match="not finite"):
        scores(nan)
    for work in refused:
        with pytest.raises(InputError, match="no place for it"):
            scores(work)
    # The rest of a work that failed is not computed.
    assert len([call for call in reranker.calls if len(call) > 4]) == 1
    assert scores(batcher.submit(pairs("q", 3), None)) == known("q", 3)


def test_a_full_queue_says_when_to_come_again(reranker: FakeReranker, batcher: Batcher) -> None:
    with reranker.paused():
        works = [batcher.submit(pairs("q", 1000), None) for _ in range(2)]
        with pytest.raises(Busy, match=re.escape("2000 pairs wait already, of 2000 that may; try again in 1 s")):
            batcher.submit(pairs("q", 1), None)
        batcher.drop(works[1])
        works[1] = batcher.submit(pairs("r", 1000), None)
    assert [scores(work) for work in works] == [known("q", 1000), known("r", 1000)]
    assert {query for call in reranker.calls for query, _ in call} == {"q", "r"}


def test_a_batcher_that_stops_answers_what_waits(reranker: FakeReranker, batcher: Batcher) -> None:
    with reranker.paused():
        works = [batcher.submit(pairs("q", 30), instruction) for instruction in ("a", "b")]
        stopping = threading.Thread(target=batcher.stop)
        stopping.start()
        eventually(lambda: not batcher.ready)
        with pytest.raises(Stopping):
            batcher.submit(pairs("q", 1), None)
    stopping.join()
    assert [work.future.done() for work in works] == [True, True]
    assert [scores(work) for work in works] == [known("q", 30, "a"), known("q", 30, "b")]


def test_a_warm_up_that_fails_is_told_and_the_server_goes_on(
    reranker: FakeReranker, caplog: pytest.LogCaptureFixture
) -> None:
    def first(stopping: object) -> None:
        raise RuntimeError("no memory for so large a batch")

    batcher = Batcher(reranker, Meters(), queue=10, batch=8, first=first)
    eventually(lambda: batcher.ready)
    assert scores(batcher.submit(pairs("q", 3), None)) == known("q", 3)
    batcher.stop()
    assert "warm-up failed" in caplog.text and "no memory for so large a batch" in caplog.text


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"documents": 100_001}, "--max-documents=100001: give a number from 1 to 100000"),
        (
            {"documents": 9, "queue": 8},
            "--max-queue=8: a request may have 9 documents (--max-documents); give at least",
        ),
        ({"held_bytes": MIB}, "--max-held=1: a body may have 16 MiB (--max-body); give at least as many"),
    ],
)
def test_limits_that_refuse_what_they_allow(limits: dict[str, int], told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        Limits(**limits)
