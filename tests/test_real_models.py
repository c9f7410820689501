"""Real pretrained models out of GGUF files, compared with what transformers and torch make of the same files.

    PRORANK_REAL_MODELS=FOLDER pytest tests/test_real_models.py

with files as smollm2-135m.gguf in FOLDER. CI fetches that one; the others are skipped where they are missing (0.3 to
0.5 GB, minutes and up to 6 GB of memory on two cores).
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_models import our_logits
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from prorank_jax.answer_place import LEAST
from prorank_jax.model.families import decoder_config
from prorank_jax.model.gguf_folder import folder_of
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


@pytest.fixture(scope="module", params=FACTS)
def file(request: pytest.FixtureRequest) -> Path:
    """A GGUF file; SmolLM2's must be there in CI."""
    name, root = request.param, os.environ.get("PRORANK_REAL_MODELS")
    found = Path(root or "no").expanduser() / f"{name}.gguf"
    if not found.is_file():
        if name == "smollm2-135m" and os.environ.get("CI") == "true":
            pytest.fail("PRORANK_REAL_MODELS: names no folder with smollm2-135m.gguf; .ci/run fetches it")
        pytest.skip(f"{found}: not there; name a folder with it in PRORANK_REAL_MODELS")
    return found


@pytest.fixture(scope="module")
def theirs(file: Path) -> Iterator[PreTrainedModel]:
    """What transformers reads."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    yield model.eval()


def test_all_tensors_are_those_of_transformers(file: Path, theirs: PreTrainedModel) -> None:
    state = theirs.state_dict()
    compared = 0
    with safe_open(folder_of(file) / "model.safetensors", framework="numpy") as ours:
        for name in ours.keys():
            np.testing.assert_allclose(ours.get_tensor(name), state[name].numpy(), rtol=0, atol=1e-6, err_msg=name)
            compared += 1
    assert compared >= len({tensor.data_ptr() for tensor in state.values()})


def test_the_tokens_of_a_thousand_texts_are_those_of_transformers(file: Path) -> None:
    ours = AutoTokenizer.from_pretrained(folder_of(file))
    original = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for text in texts():
        assert ours(text).input_ids == original(text).input_ids, text
        assert ours.encode(text, add_special_tokens=False) == original.encode(text, add_special_tokens=False), text
    assert ours.chat_template == original.chat_template


def texts() -> list[str]:
    """Prose and code of this project, and runs of random characters of scripts: 1,000 texts."""
    root = Path(__file__).parent.parent
    prose = [line for file in sorted(root.glob("docs/*.md")) for line in file.read_text().split("\n\n")]
    code = ["\n".join(file.read_text().split("\n")[10:40]) for file in sorted(root.glob("tests/*.py"))]
    rng = np.random.default_rng(0)
    scripts = {
        "Chinese": (0x4E00, 0x9FFF),
        "Arabic": (0x620, 0x64A),
        "emoji": (0x1F300, 0x1F64F),
        "Latin": (0xC0, 0x17F),
    }
    made = []
    for first, last in scripts.values():
        for _ in range(150):
            words = ("".join(map(chr, rng.integers(first, last, rng.integers(1, 9)))) for _ in range(8))
            made.append(
                str(rng.choice([" ", "  ", "\n", ", ", ""])).join(words) + str(rng.choice(["", " ", "1024", "\u200d"]))
            )
    chosen = [*made, *code[:120], *prose[: 1000 - len(made) - len(code[:120])]]
    assert len(chosen) == 1000
    return chosen


def test_logits_and_scores_are_those_of_torch(
    file: Path, theirs: PreTrainedModel, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = Reranker.from_pretrained(file)
    assert caplog.records == []
    expected, vocabulary = [], []
    for ids in reranker.prompt.encode_batch(PAIRS):
        with torch.no_grad():
            vocabulary.append(theirs(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].numpy())
        no, yes = vocabulary[-1][list(reranker.prompt.answer_ids)]
        expected.append(yes - no)
    np.testing.assert_allclose(reranker.predict(PAIRS), expected, atol=1e-3)
    tokens = np.array([ids])
    ours = our_logits(reranker.decoder, reranker.params, tokens, np.arange(len(ids))[None], np.ones(tokens.shape, bool))
    np.testing.assert_allclose(ours[0, -1], vocabulary[-1], atol=1e-3)
    likely = float(np.exp(max(no, yes) - vocabulary[-1].max()))
    assert likely == pytest.approx(FACTS[file.stem][3], rel=0.05)
    assert likely > 10 * LEAST
