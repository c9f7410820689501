"""Batches of prompts whose beginnings are shared: each prompt once, little padding, few shapes."""

from collections import Counter

import numpy as np
import pytest

from prorank_jax.prompt import PromptParts
from prorank_jax.scoring.shared import Unit, arrange, tight_width

PAD = 0


def prompts(queries: int, documents: int, seed: int = 0) -> list[PromptParts]:
    """Prompts in no order, with beginnings of 3 to 90 tokens and rests of 1 to 400."""
    rng = np.random.default_rng(seed)
    shared = [tuple(rng.integers(1, 99, rng.integers(3, 90)).tolist()) for _ in range(queries)]
    made = [
        PromptParts(beginning, rng.integers(1, 99, rng.integers(1, 400)).tolist())
        for beginning in shared
        for _ in range(documents)
    ]
    return [made[i] for i in rng.permutation(len(made))]


def read_back(units: list[Unit]) -> dict[int, list[int]]:
    """Place -> the ids of its prompt, as the arrays hold them."""
    found: dict[int, list[int]] = {}
    for unit in units:
        for batch in unit.batches:
            for place, prefix, start, tokens, length in zip(*batch, strict=False):
                assert place not in found
                assert start == unit.lengths_Q[prefix]
                shared = unit.prefix_QxP[prefix, : unit.lengths_Q[prefix]]
                found[place] = [*shared.tolist(), *tokens[:length].tolist()]
    return found


@pytest.mark.parametrize(("devices", "rows"), [(1, None), (8, None), (1, 3), (2, 1)])
def test_each_prompt_lies_once_in_a_batch_that_the_devices_divide(devices: int, rows: int | None) -> None:
    given = prompts(queries=7, documents=30)
    units = list(arrange(given, PAD, devices, (64, 1024), rows))
    assert read_back(units) == {place: [*shared, *own] for place, (shared, own) in enumerate(given)}
    for unit in units:
        for batch in unit.batches:
            B, L = batch.tokens_BxL.shape
            assert B % devices == 0
            # Enough for products of matrices to add up in one order, and no more than there is room for.
            assert 64 <= B // devices * L <= max(1024, L)
            assert rows is None or B <= max(rows, devices * -(-64 // L))


def test_nothing_makes_no_batch() -> None:
    assert list(arrange([], PAD, 1, (64, 1024), None)) == []


def test_a_beginning_is_computed_once_for_all_that_share_it() -> None:
    given = prompts(queries=5, documents=40)
    units = list(arrange(given, PAD, 1, (64, 1024), None))
    of_units = [
        {tuple(row[:length].tolist()) for row, length in zip(unit.prefix_QxP, unit.lengths_Q, strict=True)}
        for unit in units
    ]
    assert Counter(beginning for some in of_units for beginning in some) == Counter({one.shared for one in given})
    # A unit is filled up to 64 tokens, or to one of few sizes.
    for unit, some in zip(units, of_units, strict=True):
        rows, width = unit.prefix_QxP.shape
        assert rows < 4 * max(len(some), -(-64 // width))


def test_little_is_padding_and_shapes_are_few() -> None:
    given = prompts(queries=3, documents=100)
    batches = [batch for unit in arrange(given, PAD, 1, (64, 1024), None) for batch in unit.batches]
    padded = sum(batch.tokens_BxL.size for batch in batches)
    # To powers of two it would be 1.4 and to the longest 2.
    assert padded / sum(len(prompt.own) for prompt in given) < 1.2
    assert len({batch.tokens_BxL.shape for batch in batches}) <= 2 * 15


def test_what_else_is_scored_changes_no_width() -> None:
    given = prompts(queries=6, documents=6)
    alone = {place: next(arrange([prompt], PAD, 1, (64, 1024), None)) for place, prompt in enumerate(given)}
    for unit in arrange(given, PAD, 1, (64, 1024), None):
        for batch in unit.batches:
            for place in batch.places:
                assert alone[place].prefix_QxP.shape[1] == unit.prefix_QxP.shape[1]
                assert alone[place].batches[0].tokens_BxL.shape[1] == batch.tokens_BxL.shape[1]


@pytest.mark.parametrize(
    ("length", "width"), [(0, 16), (1, 16), (17, 24), (64, 64), (65, 80), (128, 128), (129, 160), (1025, 1280)]
)
def test_widths_are_four_to_an_octave(length: int, width: int) -> None:
    assert tight_width(length) == width


def test_widths_of_what_is_shared_are_two_to_an_octave() -> None:
    assert sorted({tight_width(length, 2) for length in range(257)}) == [16, 24, 32, 48, 64, 96, 128, 192, 256]
