"""Groups become the prompts of their documents, with what is to be learnt of each."""

from typing import Any

import numpy as np
import pytest
from test_layout import joined

from prorank_jax.config import PromptConfig
from prorank_jax.data.examples import Group
from prorank_jax.data.layout import Layout
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import load_prompt
from prorank_jax.scoring.batches import encode_groups, group_batch


@pytest.mark.parametrize("order", ["query_first", "document_first"])
def test_a_batch_is_the_prompts_of_its_groups(order):
    model = load_pretrained("builtin:tiny")
    prompt: Any = load_prompt(model, PromptConfig(max_length=128, order=order), "builtin:tiny")
    texts = ("It serves fish.", "Keth of Amber Cove costs a fortune.", "It bakes like clay.", "It " + "is wet " * 60)
    groups = [
        Group("Which place is cheap?", texts, (1.0, 0.0, 0.0, 0.0), (2.0, -1.5, 0.0, 3.0)),
        Group("Where is it warm?", texts[:2], (1.0, 0.0), (1.0, 0.0), "Find a place for the cold season."),
    ]
    encoded = encode_groups(groups, prompt)
    told = prompt.with_instruction("Find a place for the cold season.")
    wanted = [prompt.encode_batch([(groups[0].query, text) for text in texts])]
    wanted += [told.encode_batch([(groups[1].query, text) for text in texts[:2]])]
    assert encoded.prompts == wanted
    assert encoded.tokens == sum(len(ids) for group in wanted for ids in group)

    batch = group_batch(encoded, 4, Layout(24, (128, 64)), 1, 99)
    assert batch.mask_QxC.tolist() == [[True] * 4, [True, True, False, False]]
    assert [row[: len(ids)] for row, ids in zip(joined(batch.prompts, 4), wanted, strict=True)] == wanted
    # What is learnt are the targets, not the labels.
    assert batch.labels_QxC.tolist() == [[2.0, -1.5, 0.0, 3.0], [1.0, 0.0, 0.0, 0.0]]
    assert batch.labels_QxC.dtype == np.float32
