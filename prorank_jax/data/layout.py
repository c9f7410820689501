"""How the prompts of a batch lie in arrays, so that little is computed twice and little is padding.

What the prompts of a query have in common stands once: the task and, where the query comes first, the query. A causal
decoder sees nothing of what follows, so a prefix computed once for a group is exact. What is left of each prompt lies
in parts, the longest rows in the first: each part is as wide as its own rows need. A few layouts are chosen for a whole
run, and a batch takes the tightest that has room for it: few shapes are compiled, however long the texts are.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from prorank_jax.data.loader import pad_prompts

A = TypeVar("A")
"""numpy arrays on the host, JAX arrays on devices."""
T = TypeVar("T")
Ids = Sequence[Sequence[list[int]]]
"""The ids of each prompt, group by group."""

_STEP = 8
"""Widths are multiples of it."""
_PARTS = (1, 2, 4, 8)
_GAIN = 0.97
"""More parts are taken where they leave less than this share of the tokens: each makes the program larger."""
_SPREADS = (0.5, 1.5, 3.0)
"""Each layout is by so many standard deviations wider than the average batch needs: most batches fit the first, and
nearly all the last."""


class Part(NamedTuple, Generic[A]):
    """Rows of like length, int32: the rests of prompts, padded on the right, and the place of each among the Q x C of
    its unit."""

    tokens_BxL: A
    lengths_B: A
    places_B: A


class GroupPrompts(NamedTuple, Generic[A]):
    """The prompts of Q queries with C documents each: what the C have in common, int32, and the rests in parts.

    `[5, 6, 7]` and `[5, 6, 8, 9]` are the prefix `[5, 6]` and the rests `[8, 9]` and `[7]`. The prefix has no columns
    where nothing is shared. A rest has one token at least, so that each has a last place.
    """

    prefix_QxP: A
    prefix_lengths_Q: A
    parts: tuple[Part[A], ...]


class Layout(NamedTuple):
    """Tokens of the prefix, and of the rests in each part, widest first; the parts have equally many rows."""

    prefix: int
    widths: tuple[int, ...]

    def tokens(self, queries: int, documents: int) -> int:
        """Tokens that a unit of so many queries is padded to."""
        return queries * self.prefix + queries * documents // len(self.widths) * sum(self.widths)


def widest(longest: int) -> Layout:
    """The layout that takes any prompts of `longest` tokens at most."""
    return Layout(0, (longest,))


def choose_layouts(
    units: Sequence[Ids], documents: int, longest: int, prefixes: Iterable[int] | None = None
) -> tuple[Layout, ...]:
    """The layouts of a run, each with room for all that the one before it takes; the last takes any prompts.

    Those are chosen that pad these units to the fewest tokens, each unit in the first layout that has room for it.

    Args:
      units: prompts such as will come, equally many groups in each; what is laid out together is a unit.
      documents: C, prompts of a group at most.
      longest: tokens of a prompt at most.
      prefixes: lengths of the prefix to choose from; default: those that groups of these units have, rounded up.
    """
    queries = len(units[0])
    rows = queries * documents
    best: tuple[Layout, ...] = (widest(longest),)
    least, most_parts = float(best[0].tokens(queries, documents)), 1
    if prefixes is None:
        lengths = {0, *(common(group) for unit in units for group in unit)}
        prefixes = {_rounded(length, longest) for length in lengths}
    for prefix in sorted(prefixes):
        rests_UxR = np.array([_longest_first(_rest_lengths(unit, documents, prefix)) for unit in units])
        for parts in _PARTS:
            if rows % parts:
                continue
            needed_UxN = rests_UxR[:, :: rows // parts]
            layouts = _of_parts(needed_UxN, prefix, longest)
            tokens_U = np.full(len(units), layouts[-1].tokens(queries, documents))
            for layout in layouts[-2::-1]:
                tokens_U[(needed_UxN <= layout.widths).all(axis=1)] = layout.tokens(queries, documents)
            tokens = float(tokens_U.mean())
            if tokens < (_GAIN if parts > most_parts else 1.0) * least:
                best, least, most_parts = layouts, tokens, parts
    return best


def _of_parts(needed_UxN: np.ndarray, prefix: int, longest: int) -> tuple[Layout, ...]:
    """Layouts of N parts for units that need these widths."""
    mean_N, deviation_N = needed_UxN.mean(axis=0), needed_UxN.std(axis=0)
    layouts = []
    for spread in _SPREADS:
        # No part is narrower than the one behind it, whose rows are shorter.
        falling_N = np.maximum.accumulate((mean_N + spread * deviation_N)[::-1])[::-1]
        layouts.append(Layout(prefix, tuple(_rounded(width, longest) for width in falling_N)))
    return tuple(dict.fromkeys((*layouts, widest(longest))))


def first_fit(prompts: Ids, documents: int, layouts: Sequence[Layout], units: int) -> int:
    """Which of the layouts is the first with room for each of `units` equal shares of the groups.

    Raises:
      ValueError: none has room.
    """
    for level, layout in enumerate(layouts):
        if all(fits(unit, documents, layout) for unit in split(prompts, units)):
            return level
    raise ValueError(f"no room in {layouts[-1]} for {max(len(ids) for group in prompts for ids in group)} tokens")


def fits(unit: Ids, documents: int, layout: Layout) -> bool:
    """Whether a unit has room in the layout."""
    lengths = _longest_first(_rest_lengths(unit, documents, layout.prefix))
    return bool((lengths.reshape(len(layout.widths), -1)[:, 0] <= layout.widths).all())


def arrange(prompts: Ids, documents: int, layout: Layout, units: int, pad_id: int) -> GroupPrompts[np.ndarray]:
    """The prompts as arrays, `units` equal shares of the groups one behind the other in each.

    A place without a prompt is one token of padding.

    Raises:
      ValueError: a prompt has no room (see `first_fit`).
    """
    prefixes: list[list[int]] = []
    parts: list[list[tuple[list[int], int]]] = [[] for _ in layout.widths]
    for unit in split(prompts, units):
        cut = [min(common(group), layout.prefix) for group in unit]
        prefixes += [list(group[0][:at]) if group else [] for group, at in zip(unit, cut, strict=True)]
        rests = [
            group[i][at:] if i < len(group) else [pad_id]
            for group, at in zip(unit, cut, strict=True)
            for i in range(documents)
        ]
        order = np.argsort([-len(rest) for rest in rests], kind="stable").reshape(len(parts), -1)
        for part, places in zip(parts, order.tolist(), strict=True):
            part += [(rests[place], place) for place in places]
    prefix_QxP, prefix_lengths_Q = pad_prompts(prefixes, layout.prefix, pad_id)
    return GroupPrompts(
        prefix_QxP,
        prefix_lengths_Q,
        tuple(
            Part(*pad_prompts([rest for rest, _ in part], width, pad_id), np.array([at for _, at in part], np.int32))
            for part, width in zip(parts, layout.widths, strict=True)
        ),
    )


def split(groups: Sequence[T], units: int) -> list[Sequence[T]]:
    """Equal shares, in order."""
    size = len(groups) // units
    return [groups[start : start + size] for start in range(0, len(groups), size)]


def _rest_lengths(unit: Ids, documents: int, prefix: int) -> np.ndarray:
    """Tokens behind a prefix of at most so many, int [Q x C]; 1 where a group has no prompt."""
    lengths = np.ones((len(unit), documents), np.int64)
    for row, group in enumerate(unit):
        at = min(common(group), prefix)
        lengths[row, : len(group)] = [len(ids) - at for ids in group]
    return lengths.reshape(-1)


def _longest_first(lengths: np.ndarray) -> np.ndarray:
    return np.sort(lengths)[::-1]


def _rounded(length: float, longest: int) -> int:
    return min(math.ceil(length / _STEP) * _STEP, longest)


def common(prompts: Sequence[list[int]]) -> int:
    """Tokens at the start that all prompts of a group share, and that leave each of them one.

    `common([[5, 6, 7], [5, 6, 8, 9]])` is 2, `common([[5, 6]])` is 1.
    """
    if not prompts:
        return 0
    shortest = min(len(ids) for ids in prompts)
    rows = np.array([ids[:shortest] for ids in prompts])
    differs = np.flatnonzero((rows != rows[:1]).any(axis=0))
    return min(int(differs[0]) if differs.size else shortest, shortest - 1)
