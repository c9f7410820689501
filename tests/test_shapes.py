"""Shapes compiled ahead: all that prompts can have, each once."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from prorank_jax.config import MeshConfig
from prorank_jax.prompt import PromptParts
from prorank_jax.reranker import Reranker, _scorer
from prorank_jax.runtime.mesh import make_mesh
from prorank_jax.scoring.shapes import every_shape
from prorank_jax.scoring.shared import Unit, arrange

LONGEST = 300


def programs(units: Iterable[Unit]) -> Iterator[tuple[object, ...]]:
    for unit in units:
        Q, P = unit.prefix_QxP.shape
        yield "begin", Q, P
        for batch in unit.batches:
            B, L = batch.tokens_BxL.shape
            yield from [("spread", Q, P, B), ("score", P, B, L)]


@pytest.mark.parametrize(("devices", "tokens"), [(1, (64, 1024)), (8, (64, 1024)), (1, (100, 512)), (2, (16, 128))])
@pytest.mark.parametrize("pairs", [1, 6, 32])
def test_what_prompts_need_is_among_the_shapes(devices: int, tokens: tuple[int, int], pairs: int) -> None:
    def arranged(prompts: Sequence[PromptParts]) -> Iterator[Unit]:
        return arrange(prompts, 0, devices, tokens, None)

    lengths = [(shared, range(3, LONGEST - shared + 1)) for shared in range(40, 90)] + [(0, range(50, 60))]
    units = list(every_shape(lengths, pairs, arranged))
    ahead = Counter(programs(units))
    assert all(count == 1 for (kind, *_), count in ahead.items() if kind == "begin")
    # No batch is there for nothing.
    assert sum(len(unit.batches) for unit in units) <= sum(kind != "begin" for kind, *_ in ahead)
    rng = np.random.default_rng(pairs)
    for _ in range(300):
        queries = [(query,) * rng.integers(40, 90) for query in range(rng.integers(1, pairs + 1))]
        some = [queries[rng.integers(len(queries))] for _ in range(rng.integers(1, pairs + 1))]
        prompts = [
            PromptParts((), [0] * rng.integers(50, 60))
            if rng.random() < 0.1
            else PromptParts(shared, [0] * rng.integers(3, LONGEST - len(shared) + 1))
            for shared in some
        ]
        assert set(programs(arranged(prompts))) <= ahead.keys()


@pytest.mark.usefixtures("fast_compilation")
@pytest.mark.parametrize("order", ["query_first", "document_first"])
def test_after_a_warm_up_nothing_is_compiled(order: str) -> None:
    _scorer.cache_clear()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    reranker = Reranker.from_pretrained("builtin:tiny", max_length=80, order=order, mesh=mesh)
    reranker.warm_up(3)
    compiled: Any = _scorer(reranker.decoder, reranker.prompt.answer_ids, reranker.mesh)

    def count() -> list[int]:
        return [program._cache_size() for program in compiled]

    known = count()
    assert min(known) > 1
    rng = np.random.default_rng(0)
    for documents in range(60):
        queries = ["a" + " a" * rng.integers(32) + end for end in (" b", " c", " d")]
        reranker.predict([(rng.choice(queries), " a" * rng.integers(80)) for _ in range(documents % 3 + 1)])
    assert count() == known


def test_a_warm_up_ends_early_when_asked() -> None:
    reranker = Reranker.from_pretrained("builtin:tiny", max_length=80)
    _scorer.cache_clear()
    reranker.warm_up(1, stopping=lambda: True)
    compiled: Any = _scorer(reranker.decoder, reranker.prompt.answer_ids, reranker.mesh)
    assert compiled.score._cache_size() <= 1
