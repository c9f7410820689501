"""Made-up prompts of every shape that real ones can have, so that all is compiled before the first of them comes."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from prorank_jax.prompt import PromptParts
from prorank_jax.scoring.shared import PREFIX_WIDTHS, Unit, tight_width


def every_shape(
    lengths: Iterable[tuple[int, range]], pairs: int, arranged: Callable[[Sequence[PromptParts]], Iterable[Unit]]
) -> Iterator[Unit]:
    """Units for all that is compiled for up to `pairs` prompts at once, whatever prompts these are.

    That is: beginnings [Q, P], rests [B, L] behind beginnings [., P], and between them B rows of beginnings [Q, P].

    Args:
      lengths: tokens of a shared beginning, and all numbers of tokens that a prompt may have behind it.
      arranged: `shared.arrange`, with all but the prompts given.
    """
    rests: dict[int, dict[int, tuple[int, int]]] = defaultdict(dict)
    for shared, owns in lengths:
        for own in owns:
            rests[tight_width(shared, PREFIX_WIDTHS)].setdefault(tight_width(own), (shared, own))
    for of_width in rests.values():
        batches = {
            batch.tokens_BxL.shape: batch
            for shared, own in of_width.values()
            for rows in _powers(pairs)
            for unit in arranged([PromptParts((0,) * shared, [0] * own)] * rows)
            for batch in unit.batches
        }
        [(shared, own), *_] = of_width.values()
        beginnings = {
            len(unit.prefix_QxP): unit
            for queries in _powers(pairs)
            for unit in arranged([PromptParts((query,) * shared, [0] * own) for query in range(queries)])
        }
        first, *others = beginnings.values()
        yield first._replace(batches=list(batches.values()))
        of_size = {rows: batch for (rows, _), batch in batches.items()}
        for unit in others:
            yield unit._replace(batches=list(of_size.values()))


def _powers(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest`: `_powers(6)` is `[1, 2, 4, 6]`."""
    return [*(1 << power for power in range((largest - 1).bit_length())), largest]
