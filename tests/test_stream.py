"""Streams: each element a function of seed and position; epochs, mixtures, batches made ahead, rows of processes."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from meshes import mesh_of

from prorank_jax.data.examples import Example, Group
from prorank_jax.data.stream import TRIES, batches, groups, pairs
from prorank_jax.errors import InputError
from prorank_jax.runtime.mesh import own_rows, split_rows


@dataclass(frozen=True)
class Numbers:
    """Group i of a source says which it is, and a random number."""

    name: str
    size: int
    relevant: frozenset[int] | None = None
    """Groups with a relevant document, and those with an irrelevant one are the others; None: all have both."""

    def __len__(self) -> int:
        return self.size

    def draw(self, index: int, rng: np.random.Generator, size: int) -> Group:
        documents = (str(index), str(rng.integers(1_000_000)))
        return Group(self.name, documents[:size], (1.0, 0.0)[:size], (1.0, 0.0)[:size])

    def pair(self, index: int, rng: np.random.Generator) -> tuple[Example | None, Example | None]:
        both = self.relevant is None
        relevant = Example(f"{self.name}{index}", "yes", 1) if both or index in (self.relevant or ()) else None
        irrelevant = Example(f"{self.name}{index}", "no", 0) if both or index not in (self.relevant or ()) else None
        return relevant, irrelevant


def indexes(stream, positions):
    return [int(stream[position].documents[0]) for position in positions]


def test_each_group_is_drawn_once_an_epoch_in_an_order_of_its_own():
    stream = groups([Numbers("a", 50)], [1.0], 3, 2)
    epochs = [indexes(stream, range(50 * epoch, 50 * epoch + 50)) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # A group drawn again is drawn anew.
    assert len({stream[position].documents[1] for position in range(200)}) > 195


def test_an_element_depends_on_seed_and_position_alone():
    sources = [Numbers("a", 50), Numbers("b", 7)]
    stream = groups(sources, [1.0, 2.0], 3, 2)
    positions = [1000, 3, 999, 3, 10**9]
    found = [stream[position] for position in positions]
    again = groups(sources, [1.0, 2.0], 3, 2)
    assert [again[position] for position in reversed(positions)] == found[::-1]
    other = groups(sources, [1.0, 2.0], 4, 2)
    assert [other[position] for position in positions] != found


def test_equal_sources_are_drawn_from_in_different_orders():
    stream = groups([Numbers("a", 50), Numbers("b", 50)], [1.0, 1.0], 0, 2)
    found = [stream[position] for position in range(100)]
    first, second = ([group.documents for group in found if group.query == name] for name in "ab")
    assert len(first) == len(second) == 50 and first != second
    assert [documents[0] for documents in first] != [documents[0] for documents in second]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.2, 0.3, 0.5), (5.0, 1.0, 2.0)])
def test_a_mixture_has_its_proportions_everywhere(weights: tuple[float, ...]):
    # By weight and not by size.
    stream = groups([Numbers("a", 3), Numbers("b", 1000), Numbers("c", 10)], weights, 0, 1)
    for start in (0, 300, 12_345):
        counts = Counter(stream[position].query for position in range(start, start + 300))
        for name, weight in zip("abc", weights, strict=True):
            # To a hundredth, and two groups of rounding.
            assert counts[name] == pytest.approx(300 * weight / sum(weights), abs=5)


def test_rows_of_pairs_are_a_relevant_and_an_irrelevant_document():
    stream = pairs([Numbers("a", 5)], [1.0], 0)
    rows = stream.rows(range(3, 20))
    assert rows == [stream[row] for row in range(3, 20)]
    assert [example.label for example in rows] == [row % 2 ^ 1 for row in range(3, 20)]
    assert [rows[i].query for i in (1, 3, 5)] == [rows[i].query for i in (2, 4, 6)]
    assert {example.query for example in stream.rows(range(10))} == {f"a{i}" for i in range(5)}


def test_what_a_group_lacks_comes_from_another():
    stream = pairs([Numbers("a", 40, frozenset({3, 4}))], [1.0], 0)
    rows = stream.rows(range(160))
    assert {example.query for example in rows[0::2]} == {"a3", "a4"}
    assert {example.document for example in rows[0::2]} == {"yes"}
    assert len({example.query for example in rows[1::2]}) > 30
    # A group with a relevant document keeps it.
    assert Counter(example.query for example in stream.rows(range(80))[0::2])["a3"] >= 1


@pytest.mark.parametrize(("relevant", "kind"), [(frozenset(range(9)), "irrelevant"), (frozenset(), "relevant")])
def test_a_kind_that_is_nowhere_is_refused_before_anything_is_drawn(relevant: frozenset[int], kind: str):
    with pytest.raises(InputError) as caught:
        pairs([Numbers("b", 5), Numbers("rows.jsonl", 9, relevant)], [1.0, 1.0], 0)
    assert str(caught.value) == (
        f"rows.jsonl: no {kind} document in {TRIES} groups drawn at random; the warmup needs both kinds, "
        "so add some or leave the warmup out"
    )


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_batches_come_in_order_for_any_number_of_workers(workers: int):
    def make(step: int) -> int:
        # Later ones are ready first.
        time.sleep(0.01 if step % 3 == 0 else 0)
        return step * step

    assert list(batches(make, 2, 20, workers)) == [step * step for step in range(2, 20)]
    assert list(batches(make, 7, 7, workers)) == []


def test_batches_are_made_ahead_and_not_all_at_once():
    made, lock = set(), threading.Lock()

    def make(step: int) -> int:
        with lock:
            made.add(step)
        return step

    stream = batches(make, 0, 1000, 2)
    assert next(stream) == 0
    deadline = time.monotonic() + 30
    while len(made) < 3:
        assert time.monotonic() < deadline, "nothing is made ahead"
        time.sleep(0.01)
    stream.close()
    assert len(made) < 20


def test_an_error_comes_where_its_batch_would():
    def make(step: int) -> int:
        if step == 3:
            raise InputError("rows.jsonl: what is wrong; what helps")
        return step

    stream = batches(make, 0, 10, 2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError) as caught:
        next(stream)
    assert str(caught.value) == "rows.jsonl: what is wrong; what helps"


def test_a_resumed_run_gets_the_batches_that_it_would_have_got():
    stream = groups([Numbers("a", 50)], [1.0], 3, 2)

    def make(step: int) -> list[Group]:
        return [stream[4 * step + row] for row in range(4)]

    assert list(batches(make, 6, 12, 2)) == list(batches(make, 0, 12, 2))[6:]


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4), (1, 8), (4, 1)])
def test_one_process_has_all_rows(data: int, fsdp: int):
    mesh = mesh_of(data, fsdp)
    assert own_rows(mesh, 8) == list(range(8))
    rows = np.arange(16, dtype=np.float32).reshape(8, 2)
    placed = split_rows(mesh, {"rows": rows})["rows"]
    np.testing.assert_array_equal(placed, rows)
    assert placed.sharding.spec == jax.sharding.PartitionSpec(("data", "fsdp"))


PROCESS = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from prorank_jax.runtime.mesh import own_rows, split_rows
devices = [jax.devices()[int(place)] for place in sys.argv[3]]
mesh = jax.sharding.Mesh(np.array(devices).reshape(2, 2), ("data", "fsdp"))
own = own_rows(mesh, 8)
rows = np.array([[row, row + 0.5] for row in own], np.float32).reshape(-1)
placed = split_rows(mesh, rows)
squares = jax.jit(lambda x: (x * x).sum())(placed)
shards = sorted({float(value) for shard in placed.addressable_shards for value in np.asarray(shard.data)})
with open(sys.argv[4], "w") as file:
    json.dump([own, float(squares), placed.shape[0], shards], file)
"""


@pytest.mark.parametrize(
    ("devices", "expected"),
    # As on a slice of a TPU, whose mesh follows the wires: the devices of a process need not stand together.
    [("0123", [[0, 1, 2, 3], [4, 5, 6, 7]]), ("0213", [[0, 1, 4, 5], [2, 3, 6, 7]])],
)
def test_two_processes_hold_disjoint_rows_of_one_batch(
    devices: str, expected: list[list[int]], free_port: int, tmp_path: Path
):
    command = [sys.executable, "-c", PROCESS, f"127.0.0.1:{free_port}"]
    # Each answers in a file of its own: the library that connects the processes prints when it likes.
    answers = [tmp_path / f"{number}.json" for number in range(2)]
    running = [subprocess.Popen([*command, str(number), devices, str(answer)]) for number, answer in enumerate(answers)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    for answer, own in zip(answers, expected, strict=True):
        # The sum of the squares of 0, 0.5, 1, ... 7.5, whoever holds them: two entries for each row.
        shards = [part for row in own for part in (row, row + 0.5)]
        assert json.loads(answer.read_text()) == [own, 310.0, 16, shards]


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
