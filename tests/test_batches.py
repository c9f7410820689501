"""Groups as arrays: prefixes that are shared exactly, widths that cost least, and the same widths in every process."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from prorank_jax.config import PromptConfig
from prorank_jax.data.examples import Group
from prorank_jax.data.loader import padded_length
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import load_prompt
from prorank_jax.scoring import batches
from prorank_jax.scoring.batches import GroupBatch, GroupPrompts, agreed, group_batch, prompt_tokens, share

PAD = 99


def joined(prompts: GroupPrompts[np.ndarray]) -> list[list[list[int]]]:
    """The whole prompts again, padding left out."""
    return [
        [[*prefix[:length], *rest[:rest_length]] for rest, rest_length in zip(rests, rest_lengths, strict=True)]
        for prefix, length, rests, rest_lengths in zip(*prompts, strict=True)
    ]


def test_what_a_group_has_in_common_stands_once():
    common = list(range(40))
    prompts = [[[*common, 50, 51], [*common, 52]], [[*common, 60], [*common, 60, 61, 62]]]
    cut = share(prompts, 2, 100, PAD)
    # Group 1 has 41 tokens in common with a prompt of 41: the last token stays its own.
    assert cut.prefix_lengths_Q.tolist() == [40, 40]
    assert cut.prefix_QxP.shape == (2, 40) and cut.rest_QxCxL.shape == (2, 2, 16)
    assert cut.rest_lengths_QxC.tolist() == [[2, 1], [1, 3]]
    assert joined(cut) == prompts
    assert (cut.prefix_QxP[:, 40:] == PAD).all() and (cut.rest_QxCxL[0, 1, 1:] == PAD).all()


def test_prompts_that_share_nothing_have_no_prefix():
    cut = share([[[1, 2, 3], [4, 5]], [[6], [7, 8, 9]]], 2, 100, PAD)
    assert cut.prefix_QxP.shape == (2, 0)
    assert cut.rest_QxCxL.shape == (2, 2, 16)
    assert joined(cut) == [[[1, 2, 3], [4, 5]], [[6], [7, 8, 9]]]


def test_sharing_that_costs_more_than_it_saves_is_left_out():
    # A prefix of 4 would be 16 columns wide, and the rests would be as wide as before.
    cut = share([[[1, 2, 3, 4, *range(10, 20)], [1, 2, 3, 4, *range(30, 40)]]], 2, 100, PAD)
    assert cut.prefix_QxP.shape == (1, 0) and cut.rest_QxCxL.shape == (1, 2, 16)


def test_one_group_with_much_in_common_does_not_widen_the_prefix_of_all():
    head = list(range(32))
    alike = [[*head, *range(100, 190), 7], [*head, *range(100, 190), 8]]
    others = [[[*head, q, *range(200, 220)], [*head, q + 1, *range(300, 320)]] for q in range(3)]
    prompts = [alike, *others]
    cut = share(prompts, 2, 512, PAD)
    assert joined(cut) == prompts
    P, L = cut.prefix_QxP.shape[1], cut.rest_QxCxL.shape[2]
    # Cut behind the head the rests need 96 columns, 224 tokens a query; cut where each group differs, 128 + 2 x 24.
    assert (P, L) == (128, 24)
    many = [[head + [q, d] for d in range(8)] for q in range(4)]
    assert share(many, 8, 512, PAD).prefix_QxP.shape == (4, 40)


def test_places_without_a_document_are_one_token_of_padding():
    cut = share([[[1, 2, 3]], []], 3, 100, PAD)
    assert cut.rest_lengths_QxC.tolist() == [[3, 1, 1], [1, 1, 1]]
    assert (cut.rest_QxCxL[0, 1:] == PAD).all() and (cut.rest_QxCxL[1] == PAD).all()


@pytest.mark.parametrize(
    ("length", "padded", "finer"),
    [
        (0, 0, 0),
        (1, 16, 16),
        (16, 16, 16),
        (17, 24, 20),
        (25, 32, 28),
        (33, 48, 40),
        (65, 96, 80),
        (97, 100, 100),
        (100, 100, 100),
    ],
)
def test_few_widths(length, padded, finer):
    assert padded_length(length, 100) == padded
    assert padded_length(length, 100, parts=4) == finer


def tiny_prompt(order: str):
    model = load_pretrained("builtin:tiny")
    return load_prompt(model, PromptConfig.model_validate({"max_length": 128, "order": order}), "builtin:tiny")


@pytest.mark.parametrize("order", ["query_first", "document_first"])
def test_a_batch_of_real_prompts_is_these_prompts(order):
    prompt: Any = tiny_prompt(order)
    texts = ["It serves fish.", "Keth of Amber Cove costs a fortune.", "It bakes like clay.", "It " + "is wet " * 60]
    groups = [
        Group(
            "Which place in Amber Cove on Lorn costs next to nothing and has a frosty keeper?",
            tuple(texts),
            (1.0, 0.0, 0.0, 0.0),
            (2.0, -1.5, 0.0, 3.0),
        ),
        Group("Where is it warm?", tuple(texts[:2]), (1.0, 0.0), (1.0, 0.0), "Find a place for the cold season."),
    ]
    batch = group_batch(groups, prompt, 4)
    told = prompt.with_instruction("Find a place for the cold season.")
    wanted = [prompt.encode_batch([(groups[0].query, text) for text in texts])]
    wanted += [told.encode_batch([(groups[1].query, text) for text in texts[:2]])]
    assert [row[: len(ids)] for row, ids in zip(joined(batch.prompts), wanted, strict=True)] == wanted
    assert batch.mask_QxC.tolist() == [[True] * 4, [True, True, False, False]]
    # What is learnt are the targets, not the labels.
    assert batch.labels_QxC.tolist() == [[2.0, -1.5, 0.0, 3.0], [1.0, 0.0, 0.0, 0.0]]
    assert batch.labels_QxC.dtype == np.float32
    assert prompt_tokens(batch) == sum(len(ids) for group in wanted for ids in group)
    # Where the query comes first it is among what is shared.
    assert (batch.prompts.prefix_lengths_Q[0] > len(prompt.pieces.head_ids)) == (order == "query_first")


@dataclass
class Elsewhere:
    """Another process with wider batches."""

    widths: tuple[int, int]

    def process_allgather(self, own):
        return np.stack([own, np.array(self.widths)])


def test_every_process_pads_to_the_widest(monkeypatch):
    prompts = share([[[1, 2, 3], [4, 5]]], 2, 100, PAD)
    batch = GroupBatch(prompts, np.zeros((1, 2), np.float32), np.ones((1, 2), bool))
    assert agreed(batch, PAD).prompts.rest_QxCxL.shape == (1, 2, 16)
    monkeypatch.setattr(batches.jax, "process_count", lambda: 2)
    monkeypatch.setattr(batches, "multihost_utils", Elsewhere((24, 8)))
    wide = agreed(batch, PAD).prompts
    assert wide.prefix_QxP.shape == (1, 24) and wide.rest_QxCxL.shape == (1, 2, 16)
    assert joined(wide) == joined(prompts)
    assert (wide.prefix_QxP == PAD).all() and wide.prefix_lengths_Q.tolist() == [0]
