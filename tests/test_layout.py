"""How prompts lie in arrays: prefixes shared exactly, rests in parts of like length, one layout that pays for a run."""

import numpy as np
import pytest

from prorank_jax.data.layout import GroupPrompts, Layout, arrange, choose_layouts, first_fit, widest

PAD = 99


def joined(prompts: GroupPrompts[np.ndarray], documents: int, units: int = 1) -> list[list[list[int]]]:
    """The whole prompts again, padding left out; a place without a prompt has one token of padding."""
    queries = len(prompts.prefix_QxP) // units
    found: dict[tuple[int, int], list[int]] = {}
    for part in prompts.parts:
        rows = len(part.places_B) // units
        for row, (tokens, length, place) in enumerate(zip(*part, strict=True)):
            query = row // rows * queries + place // documents
            prefix = prompts.prefix_QxP[query, : prompts.prefix_lengths_Q[query]]
            assert (tokens[length:] == PAD).all()
            assert (query, place % documents) not in found, "two rows in one place"
            found[query, place % documents] = [*prefix.tolist(), *tokens[:length].tolist()]
    return [[found[query, place] for place in range(documents)] for query in range(queries * units)]


def test_what_a_group_has_in_common_stands_once():
    common = list(range(40))
    prompts = [[[*common, 50, 51], [*common, 52]], [[*common, 60], [*common, 60, 61, 62]]]
    laid = arrange(prompts, 2, Layout(40, (8,)), 1, PAD)
    # Group 1 has 41 tokens in common with a prompt of 41: the last token stays its own.
    assert laid.prefix_lengths_Q.tolist() == [40, 40] and laid.prefix_QxP.shape == (2, 40)
    [part] = laid.parts
    # The longest first; of equal ones the first.
    assert part.places_B.tolist() == [3, 0, 1, 2] and part.lengths_B.tolist() == [3, 2, 1, 1]
    assert joined(laid, 2) == prompts
    assert {array.dtype for array in (*laid[:2], *part)} == {np.dtype(np.int32)}
    wider = arrange(prompts, 2, Layout(48, (8,)), 1, PAD)
    assert wider.prefix_lengths_Q.tolist() == [40, 40] and joined(wider, 2) == prompts
    shorter = arrange(prompts, 2, Layout(16, (32,)), 1, PAD)
    assert shorter.prefix_lengths_Q.tolist() == [16, 16] and joined(shorter, 2) == prompts


def test_rows_of_like_length_lie_in_one_part():
    prompts = [[[q, *range(length)] for length in (3, 9, 1, 6)] for q in (50, 60)]
    laid = arrange(prompts, 4, Layout(0, (10, 7, 4, 2)), 1, PAD)
    assert [part.lengths_B.tolist() for part in laid.parts] == [[10, 10], [7, 7], [4, 4], [2, 2]]
    assert [part.tokens_BxL.shape for part in laid.parts] == [(2, 10), (2, 7), (2, 4), (2, 2)]
    assert joined(laid, 4) == prompts


def test_units_are_laid_out_one_behind_the_other():
    prompts = [[[q, *range(length)] for length in (2, 8)] for q in (50, 60, 70, 80)]
    laid = arrange(prompts, 2, Layout(8, (10, 4)), 2, PAD)
    # Rows and places of the first two groups, then of the other two.
    assert [part.places_B.tolist() for part in laid.parts] == [[1, 3, 1, 3], [0, 2, 0, 2]]
    assert joined(laid, 2, units=2) == prompts


def test_places_without_a_prompt_are_one_token_of_padding():
    laid = arrange([[[1, 2, 3]], []], 3, Layout(0, (8,)), 1, PAD)
    assert joined(laid, 3) == [[[1, 2, 3], [PAD], [PAD]], [[PAD], [PAD], [PAD]]]


def test_a_layout_has_room_or_not():
    prompts = [[[1, 2, 3, 4, 5], [1, 2, 3, 6]], [[7, 8, 9, 9], [7, 9]]]
    # Behind 2 tokens: rests of 3, 2, 3 (cut behind 1), 1.
    layouts = [Layout(2, (2, 2)), Layout(2, (3, 1)), Layout(2, (3, 2)), Layout(2, (3, 3)), widest(5)]
    assert first_fit(prompts, 2, layouts, 1) == 2
    # Each unit has a part of each width to itself: 3 and 2; 3 and 1.
    assert first_fit(prompts, 2, layouts, 2) == 2
    assert first_fit(prompts[1:], 2, layouts, 1) == 1
    assert first_fit(prompts, 2, layouts[-1:], 2) == 0
    with pytest.raises(ValueError, match="for 5 tokens"):
        first_fit(prompts, 2, [widest(4)], 1)


def of_lengths(prefix: int, *lengths: int) -> list[list[int]]:
    return [[*range(1000, 1000 + prefix), 10 + place, *range(length - 1)] for place, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("group", "layout"),
    [
        # Nothing in common, one length: one part, as wide as it is, in eights.
        (of_lengths(0, 20, 20, 20, 20), Layout(0, (24,))),
        # 40 tokens once instead of four times.
        (of_lengths(40, 20, 20, 20, 20), Layout(40, (24,))),
        # A prefix of 8 leaves rests of 16 as wide as 20 was: 8 + 4 * 16 is less than 4 * 24.
        (of_lengths(8, 12, 12, 12, 12), Layout(8, (16,))),
        # Of a single document nothing is shared, as it saves nothing.
        (of_lengths(16, 8), Layout(0, (24,))),
        # Two parts of two lengths; four of four.
        (of_lengths(0, 96, 96, 16, 16), Layout(0, (96, 16))),
        (of_lengths(0, 96, 64, 32, 8), Layout(0, (96, 64, 32, 8))),
        # Two parts save 4 tokens in a hundred; four would save 2, too few for programs so much larger.
        (of_lengths(0, 96, 96, 88, 88), Layout(0, (96, 88))),
        (of_lengths(0, 96, 96, 96, 88), Layout(0, (96,))),
        # No wider than the longest prompt that there is.
        (of_lengths(0, 98, 98, 98, 98), Layout(0, (98,))),
    ],
)
def test_the_layout_of_a_run_takes_the_fewest_tokens(group, layout):
    assert choose_layouts([[group]], len(group), 98) == tuple(dict.fromkeys((layout, widest(98))))


def test_batches_of_all_lengths_take_the_tightest_of_a_few_layouts():
    rng = np.random.default_rng(0)
    units = [
        [of_lengths(int(rng.integers(0, 40)), *rng.integers(1, 200, 8).tolist()) for _ in range(4)] for _ in range(80)
    ]
    layouts = choose_layouts(units[:16], 8, 240)
    assert len(layouts) == 4 and layouts[3] == widest(240)
    assert all(len(layout.widths) == 8 and layout.widths[0] > layout.widths[7] for layout in layouts[:3])
    # Each has room for what the one before it takes.
    assert all((np.array(near.widths) <= far.widths).all() for near, far in zip(layouts[:2], layouts[1:3], strict=True))
    # Of batches that the layouts were not chosen by, too, most take the first and hardly any the last.
    taken = [first_fit(unit, 8, layouts, 1) for unit in units[16:]]
    assert np.mean(np.array(taken) == 0) > 0.3 and np.mean(np.array(taken) == 3) < 0.1
    tokens = np.mean([layouts[level].tokens(4, 8) for level in taken])
    real = np.mean([sum(len(ids) for group in unit for ids in group) for unit in units[16:]])
    # Padding to the longest prompt of each batch takes 1.8 times the tokens that there are.
    assert tokens < 1.2 * real
    for unit, level in zip(units[16:], taken, strict=True):
        assert joined(arrange(unit, 8, layouts[level], 1, PAD), 8) == unit


def test_no_part_is_narrower_than_the_one_behind_it():
    """The second row is 55 tokens long on average, and three deviations of 26 more are over the first row's 100."""
    units = [[of_lengths(0, 100, 40)]] * 3 + [[of_lengths(0, 100, 100)]]
    # Without a look at the first part: (104, 136).
    assert choose_layouts(units, 2, 240) == (
        Layout(0, (104, 72)),
        Layout(0, (104, 96)),
        Layout(0, (136, 136)),
        widest(240),
    )


def test_a_part_of_missing_documents_has_room_for_their_padding():
    units = [[of_lengths(0, 96, 96)]]
    layout, _ = choose_layouts(units, 4, 98)
    assert layout == Layout(0, (96, 8))
    assert joined(arrange(units[0], 4, layout, 1, PAD), 4) == [[*units[0][0], [PAD], [PAD]]]


def test_rows_that_do_not_divide_lie_in_one_part():
    units = [[of_lengths(0, 96, 16, 16)]]
    assert choose_layouts(units, 3, 98)[0] == Layout(0, (96,))
