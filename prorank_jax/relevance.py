"""Scores as they leave a model: finite numbers, and between 0 and 1 where that is asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np

from prorank_jax.errors import InputError

REMEDY = "use float32, or another checkpoint"


class NotFinite(InputError):
    """A score is not a finite number.

    Attributes:
      position: of the score among those that were computed together.
      value: the score.
    """

    def __init__(self, name: str, position: int, value: float, remedy: str = REMEDY):
        super().__init__(f"{name} is {value}, not a finite number: values in the model overflow; {remedy}")
        self.position, self.value = position, value


def finite(scores: np.ndarray, name: Callable[[int], str], remedy: str = REMEDY, *, first: int = 0) -> np.ndarray:
    """The scores as they are.

    Args:
      name: names the score at a position, for the message.
      first: the position of the first of them.

    Raises:
      NotFinite: one of them is not finite; names the first.
    """
    sound = np.isfinite(scores)
    if not sound.all():
        place = int(np.argmin(sound))
        raise NotFinite(name(first + place), first + place, float(scores[place]), remedy)
    return scores


def probabilities(scores: Any) -> np.ndarray:
    """Their sigmoids, in float64: there what float32 tells apart stays apart, and no score is too low or too high.

    >>> probabilities([0.0, -1000.0, 1000.0]).tolist()
    [0.5, 0.0, 1.0]
    """
    # SciPy takes 0.3 s to import, which only who asks for probabilities should wait for.
    from scipy.special import expit

    values: np.ndarray = expit(np.asarray(scores, np.float64))
    return values
