"""The exported folder in the tools of others: equal scores, and the same model when it comes back."""

import itertools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import CrossEncoder
from transformers import AutoModelForCausalLM

from prorank_jax.config import PromptConfig
from prorank_jax.export import export_model
from prorank_jax.model.decoder import Decoder
from prorank_jax.model.hf import Pretrained, load_pretrained
from prorank_jax.prompt import Prompt, build_prompt, load_tokenizer
from prorank_jax.reranker import Reranker

QUERIES = [
    "",
    "Which place in Rose Wold serves fish and is full of peace?",
    "哪个地方最便宜？",
    "أين يمكنني النوم؟",
    "🐟🐟 where",
    "1",
    "what is 0 + 1 !?",
    "two\nlines?",
    "ends in a colon:",
    "?",
]
DOCUMENTS = [
    "Bal, Rose Wold. Bal of Rose Wold serves fish. It is full of peace.",
    "",
    "0",
    "它位于海边，价格便宜。",
    "يقع على الشاطئ.",
    "It rains 🌧️ every day, 👩‍🌾!",
    "first line\n\nthird line?\n- item...",
    "Kein Punkt am Ende",
    "ends in brackets (so)",
    "   spaces around   ",
]
PAIRS = list(itertools.product(QUERIES, DOCUMENTS))


def changed(pretrained: Pretrained) -> dict:
    """Parameters as after training: other values than those of the folder."""
    return jax.tree.map(lambda leaf: leaf * 1.1, pretrained.params)


def export(model: Path, folder: Path) -> Reranker:
    """Exports changed parameters and returns the reranker made of them in memory."""
    pretrained = load_pretrained(model)
    prompt = build_prompt(load_tokenizer(model), PromptConfig(max_length=200), place=str(model))
    params = changed(pretrained)
    export_model(folder, pretrained, params, prompt)
    return Reranker(Decoder(pretrained.config), params, prompt)


def causal_scores(folder: Path, prompt: Prompt) -> np.ndarray:
    """z1 - z0 of the last position of each prompt, one at a time, by torch."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    scores = []
    with torch.no_grad():
        for ids in prompt.encode_batch(PAIRS):
            z0, z1 = model(input_ids=torch.tensor([ids])).logits[0, -1, list(prompt.answer_ids)]
            scores.append(float(z1 - z0))
    return np.array(scores)


@pytest.fixture(scope="module", params=["tied", "untied"])
def exported(
    request: pytest.FixtureRequest, tiny_model: Path, untied_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Reranker]:
    folder = tmp_path_factory.mktemp("exported") / "export"
    return folder, export(tiny_model if request.param == "tied" else untied_model, folder)


def test_scores_in_transformers(exported: tuple[Path, Reranker]) -> None:
    folder, reranker = exported
    ours = reranker.predict(PAIRS)
    assert len(PAIRS) == 100
    assert max(map(len, reranker.prompt.encode_batch(PAIRS))) < reranker.max_length
    assert ours.std() > 0.1
    np.testing.assert_allclose(causal_scores(folder, reranker.prompt), ours, atol=1e-4)


def test_scores_in_sentence_transformers(exported: tuple[Path, Reranker]) -> None:
    folder, reranker = exported
    model = CrossEncoder(str(folder), device="cpu")
    theirs = model.predict(PAIRS, batch_size=8)
    # A sigmoid or the two answers swapped would be far off.
    np.testing.assert_allclose(theirs, reranker.predict(PAIRS), atol=1e-4)
    hits = model.rank(QUERIES[0], DOCUMENTS)
    assert [hit["corpus_id"] for hit in hits] == [hit.index for hit in reranker.rank(QUERIES[0], DOCUMENTS)]


def test_comes_back_bit_for_bit(exported: tuple[Path, Reranker]) -> None:
    folder, reranker = exported
    back = Reranker.from_pretrained(folder)
    assert back.prompt == reranker.prompt
    assert back.max_length == 200
    assert back.decoder == reranker.decoder
    ours, theirs = (jax.tree_util.tree_flatten_with_path(r.params)[0] for r in (reranker, back))
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, one), (_, other) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=str(path))
    np.testing.assert_array_equal(back.predict(PAIRS), reranker.predict(PAIRS))


def test_an_export_of_an_export_is_the_same_folder(exported: tuple[Path, Reranker], tmp_path: Path) -> None:
    folder, _ = exported
    back = Reranker.from_pretrained(folder)
    export_model(tmp_path / "again", load_pretrained(folder), back.params, back.prompt)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes(), file


def test_a_folder_is_replaced_whole(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "export"
    folder.mkdir(parents=True)
    (folder / "model-00001-of-00002.safetensors").write_text("of an older and larger model")
    unfinished = tmp_path / "run" / "export.unfinished"
    unfinished.mkdir()
    (unfinished / "left.by.a.killed.run").write_text("")
    export(tiny_model, folder)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["export"]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "1_LogitScore/config.json",
        "chat_template.jinja",
        "config.json",
        "config_sentence_transformers.json",
        "generation_config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_an_export_that_fails_leaves_the_older_folder(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export(tiny_model, folder)
    before = (folder / "model.safetensors").read_bytes()
    pretrained = load_pretrained(tiny_model)
    prompt = build_prompt(load_tokenizer(tiny_model), PromptConfig(), place="x")
    with pytest.raises(KeyError):
        export_model(folder, pretrained, {}, prompt)
    assert (folder / "model.safetensors").read_bytes() == before


def test_generation_goes_on_behind_the_prompt_and_ends_with_the_turn(exported: tuple[Path, Reranker]) -> None:
    folder, reranker = exported
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["eos_token_id"] == reranker.prompt.end_id
    # A batch of prompts is continued on the right.
    assert load_tokenizer(folder).padding_side == "left"


def test_scores_with_the_tokenizer_of_qwen(shared: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "qwen"
    shutil.copytree(shared / "models" / "qwen2.5-tokenizer", model)
    model.chmod(0o755)
    config = json.loads((tiny_model / "config.json").read_text()) | {"vocab_size": 151_936}
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(tiny_model / "model.safetensors")
    rng = np.random.default_rng(0)
    tensors["model.embed_tokens.weight"] = rng.normal(0.0, 0.3, (151_936, 32)).astype(np.float32)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    reranker = export(model, tmp_path / "export")
    ours = reranker.predict(PAIRS)
    assert ours.std() > 0.1
    np.testing.assert_allclose(causal_scores(tmp_path / "export", reranker.prompt), ours, atol=1e-4)
    np.testing.assert_allclose(CrossEncoder(str(tmp_path / "export"), device="cpu").predict(PAIRS), ours, atol=1e-4)
    assert Reranker.from_pretrained(tmp_path / "export").prompt == reranker.prompt


@pytest.mark.parametrize("prompt_config", [{"instruction": 'Say "1" for dry places.'}, {"answers": ("a", "b")}])
def test_another_wording_is_exported_with_the_model(tiny_model: Path, tmp_path: Path, prompt_config: dict) -> None:
    pretrained = load_pretrained(tiny_model)
    config = PromptConfig(max_length=300, **prompt_config)
    prompt = build_prompt(load_tokenizer(tiny_model), config, place="x")
    export_model(tmp_path / "export", pretrained, pretrained.params, prompt)
    back = Reranker.from_pretrained(tmp_path / "export")
    assert back.prompt == prompt
    ours = back.predict(PAIRS)
    np.testing.assert_allclose(CrossEncoder(str(tmp_path / "export"), device="cpu").predict(PAIRS), ours, atol=1e-4)
