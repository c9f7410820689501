"""Rewards: was the format kept, was the answer right, and whatever else a user wants to reinforce.

A reward is a pure function of arrays, `(tokens_PxGxT, lengths_PxG, labels_P, answers) -> float [P, G]`, which is
traced into the compiled step. The configuration names it: `format`, `relevance` or `module:function`. With

    rewards: {format: 1, relevance: 1, brevity:short: 0.1}

this function in brevity.py, in the working directory, favours short completions:

    def short(tokens_PxGxT, lengths_PxG, labels_P, answers):
        return 1.0 / lengths_PxG
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from prorank_jax.errors import InputError


class AnswerTokens(NamedTuple):
    """Token ids: the answers "not relevant" and "relevant", and the end of the turn."""

    negative: int
    positive: int
    end: int


RewardFunction = Callable[[Array, Array, Array, AnswerTokens], Array]
"""Of `tokens_PxGxT` int32, behind its end a completion is filled up with the end; `lengths_PxG` int32, its tokens with
the end; `labels_P` int32, 0 or 1."""


class Reward(NamedTuple):
    """A reward by its name in metrics, and what it counts for."""

    name: str
    function: RewardFunction
    weight: float


def format_reward(tokens_PxGxT: Array, lengths_PxG: Array, labels_P: Array, answers: AnswerTokens) -> Array:
    """1 where the completion is exactly one answer token and the end of the turn, whichever answer it is.

    With answers (15, 16, end 9): `[[[16, 9, 9], [16, 16, 9], [7, 9, 9]]]` -> `[[1, 0, 0]]`.
    """
    first = tokens_PxGxT[:, :, 0]
    return (_closed(tokens_PxGxT, answers) & ((first == answers.negative) | (first == answers.positive))).astype(
        jnp.float32
    )


def relevance_reward(tokens_PxGxT: Array, lengths_PxG: Array, labels_P: Array, answers: AnswerTokens) -> Array:
    """1 where the completion has the right format and is the label."""
    right_P = jnp.where(labels_P == 1, answers.positive, answers.negative)
    return (_closed(tokens_PxGxT, answers) & (tokens_PxGxT[:, :, 0] == right_P[:, None])).astype(jnp.float32)


def _closed(tokens_PxGxT: Array, answers: AnswerTokens) -> Array:
    """Whether the turn ends right behind the first token."""
    return tokens_PxGxT[:, :, 1] == answers.end


BUILT_IN: dict[str, RewardFunction] = {"format": format_reward, "relevance": relevance_reward}


def load_rewards(weights: Mapping[str, float], group_size: int, max_new_tokens: int) -> tuple[Reward, ...]:
    """The functions behind the names of the configuration, each tried on shapes.

    A module is looked for in the working directory first, then among what is installed.

    Raises:
      InputError: there is no such function, it cannot be traced, or it returns another shape or dtype.
    """
    rewards = []
    for name, weight in weights.items():
        function = BUILT_IN.get(name) or _import(name)
        _try(name, function, group_size, max_new_tokens)
        rewards.append(Reward(name.rpartition(":")[2], function, weight))
    return tuple(rewards)


def _import(name: str) -> RewardFunction:
    place = f"config: warmup.rewards.{name}"
    module_name, _, attribute = name.partition(":")
    try:
        with _working_directory_first():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name:
            raise InputError(
                f"{place}: no module {module_name}; put {module_name}.py into the working directory, or install it"
            ) from None
        raise InputError(f"{place}: {module_name} needs the module {error.name}; install it") from None
    except Exception as error:  # whatever a user's module does when it is imported
        raise InputError(f"{place}: importing {module_name} fails ({_line(error)}); mend the module") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"{place}: {module_name} has no function {attribute!r}; name one that it defines")
    checked: RewardFunction = function
    return checked


@contextmanager
def _working_directory_first() -> Iterator[None]:
    path = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = path


def _try(name: str, function: RewardFunction, group_size: int, max_new_tokens: int) -> None:
    """Refuses a function that cannot be compiled into a step, or gives something else than a reward a completion."""
    P, G, T = 3, group_size, max_new_tokens
    tokens, lengths, labels = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((P, G, T), (P, G), (P,)))

    def traced(tokens: Array, lengths: Array, labels: Array) -> Any:
        return function(tokens, lengths, labels, AnswerTokens(0, 1, 2))

    try:
        result: Any = jax.eval_shape(traced, tokens, lengths, labels)
    except Exception as error:  # whatever a user's function does
        raise InputError(
            f"config: warmup.rewards.{name}: cannot be traced by JAX ({_line(error)}); write it with jax.numpy, "
            "without branches on values"
        ) from None
    if not isinstance(result, jax.ShapeDtypeStruct):
        got = type(result).__name__
    elif result.shape != (P, G) or not jnp.issubdtype(result.dtype, jnp.floating):
        got = f"{result.dtype}{list(result.shape)}"
    else:
        return
    raise InputError(
        f"config: warmup.rewards.{name}: returned {got} for tokens {[P, G, T]}; return a number for each completion, "
        f"float32{[P, G]}"
    )


def _line(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first[:160]}" if first else type(error).__name__
