"""Items made by another thread: in order, not further ahead than asked for, and with their errors in place."""

import gc
import threading
import time
from collections.abc import Iterator

import pytest

from prorank_jax.ahead import ahead


def test_items_come_in_order_made_by_another_thread():
    made_by = set()

    def items() -> Iterator[int]:
        for i in range(100):
            made_by.add(threading.get_ident())
            yield i

    assert list(ahead(items(), depth=3)) == list(range(100))
    assert threading.get_ident() not in made_by
    assert list(ahead([])) == []
    assert list(ahead([None, None])) == [None, None]


@pytest.mark.parametrize("depth", [1, 4])
def test_so_many_are_made_ahead_and_no_more(depth):
    made = []

    def items() -> Iterator[int]:
        for i in range(20):
            made.append(i)
            yield i

    for i in ahead(items(), depth):
        for _ in range(200):
            if len(made) == min(i + 1 + depth, 20):
                break
            time.sleep(0.01)
        assert len(made) == min(i + 1 + depth, 20)


def test_an_error_is_raised_behind_the_items_before_it():
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("third")

    found = []
    with pytest.raises(KeyError, match="third"):
        for item in ahead(items(), depth=2):
            found.append(item)
    assert found == [1, 2]


def test_no_more_is_made_once_the_iteration_is_left():
    made = []

    def items() -> Iterator[int]:
        for i in range(1000):
            made.append(i)
            yield i

    threads = threading.active_count()
    for item in ahead(items(), depth=2):
        assert item == 0
        break
    gc.collect()
    assert threading.active_count() == threads
    assert len(made) <= 4
