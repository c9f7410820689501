"""Real pretrained models, as transformers writes them from GGUF files: their `config.json`; their scores if asked.

    PRORANK_REAL_MODELS=FOLDER pytest tests/test_real_models.py

with folders of the names below in FOLDER (0.5 to 2 GB each, minutes on two cores).
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from prorank_jax.answer_place import LEAST
from prorank_jax.model.families import decoder_config
from prorank_jax.reranker import Reranker

CONFIGS = json.loads((Path(__file__).parent / "real_models.json").read_text())
# Layers, width, tied, and the probability of the likelier answer to that of the likeliest token after our prompt.
FACTS = {
    "smollm2-135m": (30, 576, True, 0.14),
    "qwen2.5-coder-0.5b": (24, 896, False, 1.0),
    "gemma3-270m": (18, 640, True, 0.022),
}
PAIRS = [
    ("what do crabs eat?", "Crabs eat algae, worms and other crustaceans."),
    ("what do crabs eat?", "Tea is a drink made of leaves."),
    ("who wrote hamlet", "Hamlet is a tragedy written by William Shakespeare."),
    ("capital of france", "Berlin is the capital of Germany."),
    ("how long is a marathon", "A marathon is 42.195 kilometres long."),
]


@pytest.mark.parametrize("name", FACTS)
def test_the_configuration_is_read_as_it_is_written(name: str, caplog: pytest.LogCaptureFixture) -> None:
    config = decoder_config(CONFIGS[name], name)
    assert (config.layers, config.width, config.tied) == FACTS[name][:3]
    assert caplog.records == []


@pytest.mark.parametrize("name", FACTS)
def test_scores_are_those_of_torch(name: str, caplog: pytest.LogCaptureFixture) -> None:
    if (root := os.environ.get("PRORANK_REAL_MODELS")) is None:
        pytest.skip("PRORANK_REAL_MODELS: not set; name a folder with real models in it")
    folder = Path(root).expanduser() / name
    reranker = Reranker.from_pretrained(folder)
    assert caplog.records == []
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = []
    for ids in reranker.prompt.encode_batch(PAIRS):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].numpy()
        no, yes = logits[list(reranker.prompt.answer_ids)]
        theirs.append(yes - no)
    np.testing.assert_allclose(reranker.predict(PAIRS), theirs, atol=1e-3)
    likely = float(np.exp(max(no, yes) - logits.max()))
    assert likely == pytest.approx(FACTS[name][3], rel=0.05)
    assert likely > 10 * LEAST
