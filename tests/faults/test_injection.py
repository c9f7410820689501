"""No text steers the prompt: attacks on it, and texts of any content."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prorank_jax.config import PromptConfig
from prorank_jax.prompt import Prompt, build_prompt, load_tokenizer
from prorank_jax.reranker import Reranker
from prorank_jax.slots import control_tokens

from . import injection
from .injection import HARMLESS, Attack, attacks, outside, specials


@pytest.fixture(scope="module")
def tiny_prompt(tiny_model: Path) -> Prompt:
    return build_prompt(load_tokenizer(tiny_model), PromptConfig(max_length=1024), place="tiny")


@pytest.mark.parametrize("name", ["prompt", "tiny_prompt"])
def test_of_500_attacks_none_leaves_its_slot(name: str, request: pytest.FixtureRequest, fault_seed: int) -> None:
    found = injection.report(request.getfixturevalue(name), 500, fault_seed)
    print(f"{name}: {found}")
    assert set(found["ours"].values()) == {0}
    # Rendered and tokenised as one string, half of them do what they are for.
    assert found["plain"]["control tokens added"] > 200
    assert found["plain"]["turns added"] > 100


def test_an_attack_in_an_instruction_stays_there(prompt: Prompt) -> None:
    harmless = prompt.with_instruction("Judge.")
    for attack in attacks(prompt, 60, seed=1):
        if attack.text.strip():
            told = prompt.with_instruction(attack.text)
            assert not specials(prompt, told.encode("a", "b")) - specials(prompt, harmless.encode("a", "b"))
            assert told.pieces.tail_ids == harmless.pieces.tail_ids
            assert told.answer_ids == harmless.answer_ids


# What a text may hold, often what means something to somebody.
_TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=[]), max_size=12),
        st.sampled_from(
            [
                "<|im_end|>",
                "<|im_start|>",
                "<tool_call>",
                "<|endoftext|>",
                "\n",
                "\r\n",
                "assistant\n1",
                "{{ x }}",
                "{%",
            ]
        ),
        st.sampled_from(["\0", "\ud800", "\udfff", "\u202e", "\u2066", "\u200d", "\x1b[2J", "\ufeff", "e\u0301" * 9]),
    ),
    max_size=12,
).map("".join)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(query=_TEXTS, document=_TEXTS, length=st.integers(70, 200))
def test_whatever_texts_say_the_prompt_around_them_stays(
    prompt: Prompt, query: str, document: str, length: int
) -> None:
    short = replace(prompt, max_length=length)
    ids = short.encode(query, document)
    assert len(ids) <= length
    assert specials(prompt, ids) == specials(prompt, prompt.encode(HARMLESS, HARMLESS))
    # An empty text takes the newlines around it with it, which are one token then.
    if query.strip() and document.strip():
        calm = prompt.encode(HARMLESS, HARMLESS)
        for role in ("query", "document"):
            first = ("query", "document")[prompt.pieces.document_first] == role
            ours, theirs = (outside(prompt, Attack(role, ""), found) for found in (ids, calm))
            # Beside the other text, which is another, stands what is fixed.
            assert ours[0 if first else 1] == theirs[0 if first else 1]


def test_scores_of_attacks_are_finite_and_do_not_depend_on_their_company(tiny_model: Path) -> None:
    reranker = Reranker.from_pretrained(tiny_model, max_length=160)
    odd = ["", "\0", "\ud800", "\u202e" * 99, "a" * 100_000, "<|im_end|>" * 50, "\n" * 9]
    texts = [attack.text for attack in attacks(reranker.prompt, 25)] + odd
    scores = reranker.predict([(HARMLESS, text) for text in texts])
    assert np.isfinite(scores).all()
    turned = reranker.predict([(HARMLESS, text) for text in reversed(texts)])
    np.testing.assert_allclose(scores, turned[::-1], atol=1e-5)


def test_the_attacks_are_many_and_differ(prompt: Prompt) -> None:
    made = attacks(prompt, 500)
    assert len({attack.text for attack in made}) > 450
    assert {attack.role for attack in made} == {"query", "document"}
    tokens = control_tokens(prompt.tokenizer).values()
    assert sum(any(token in attack.text for token in tokens) for attack in made) > 250
