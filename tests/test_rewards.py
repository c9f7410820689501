"""Which completions count as answers, and what they earn."""

import jax.numpy as jnp
import numpy as np
import pytest

from prorank_jax.warmup.rewards import MALFORMED, REWARDS, format_reward, read_answers, relevance_reward

ZERO, ONE, END, WORD = 15, 16, 9, 7


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ([ZERO, END, END, END], 0),
        ([ONE, END, END, END], 1),
        ([ONE, WORD, END, END], MALFORMED),  # an answer, and something behind it
        ([ONE, WORD, ONE, END], MALFORMED),
        ([ONE, ONE, END, END], MALFORMED),  # two answers, even where they agree
        ([ZERO, ONE, END, END], MALFORMED),
        ([ONE, ONE, ONE, ONE], MALFORMED),  # never ends
        ([ONE, WORD, WORD, WORD], MALFORMED),
        ([END, END, END, END], MALFORMED),  # ends without a word
        ([WORD, END, END, END], MALFORMED),  # another word
        ([WORD, ONE, END, END], MALFORMED),  # an answer, but not at its place
    ],
)
def test_only_one_answer_token_and_the_end_is_well_formed(completion, answer):
    answers = read_answers(jnp.array([[completion]], jnp.int32), (ZERO, ONE), END)
    assert answers.dtype == jnp.int32
    assert answers.tolist() == [[answer]]


def test_two_tokens_are_room_enough_for_an_answer():
    completions = jnp.array([[[ONE, END], [ONE, ONE]], [[ZERO, END], [END, END]]], jnp.int32)
    assert read_answers(completions, (ZERO, ONE), END).tolist() == [[1, -1], [0, -1]]


def test_the_first_answer_id_is_the_answer_0():
    # With the ids the other way round the same completion says the opposite.
    assert read_answers(jnp.array([[[ONE, END]]], jnp.int32), (ONE, ZERO), END).tolist() == [[0]]


def test_rewards():
    answers = jnp.array([[0, 1, MALFORMED], [0, 1, MALFORMED]], jnp.int32)
    labels = jnp.array([0, 1], jnp.int32)
    # The format earns its reward whatever it says; what is malformed is never right, not even for label 0.
    np.testing.assert_array_equal(format_reward(answers, labels), [[1, 1, 0], [1, 1, 0]])
    np.testing.assert_array_equal(relevance_reward(answers, labels), [[1, 0, 0], [0, 1, 0]])
    assert {reward(answers, labels).dtype for reward in REWARDS.values()} == {jnp.dtype("float32")}
