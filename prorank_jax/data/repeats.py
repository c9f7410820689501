"""Documents that a query has more than once: each is kept once, by its highest label, and the queries are counted.

    a: 1, b: 0, a: 0  ->  a: 1, b: 0

Rows of others have such: a positive that was mined as a negative too, or a pair that two people judged differently.
"""

import logging
from collections.abc import Sequence

_log = logging.getLogger(__name__)


class Repeats:
    """Looks at rows, or at the groups that rows became, and counts those with a repeated document."""

    def __init__(self) -> None:
        self.seen = self.contradicting = self.repeating = 0

    def kept(self, documents: Sequence[str], labels: Sequence[float]) -> list[int]:
        """Positions of the documents that are kept: of equal ones, whitespace around them aside, the first of those
        with the highest label."""
        self.seen += 1
        if len(documents) == 1:
            return [0]
        best: dict[str, int] = {}
        contradicting = False
        for position, document in enumerate(documents):
            other = best.setdefault(document.strip(), position)
            contradicting |= (labels[position] > 0) != (labels[other] > 0)
            if labels[position] > labels[other]:
                best[document.strip()] = position
        if len(best) < len(documents):
            self.contradicting += contradicting
            self.repeating += not contradicting
        return sorted(best.values())

    def warn(self, name: str, what: str) -> None:
        """One warning for all, where there were some; `what` was looked at."""
        if self.contradicting or self.repeating:
            _log.warning(
                "%s: %d of %d %s have a document as relevant and as not relevant, %d have one twice; it is kept once, "
                "by its highest label",
                *(name, self.contradicting, self.seen, what, self.repeating),
            )
