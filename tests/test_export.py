"""The exported folder in the tools of others: equal scores, and the same model when it comes back."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hf_models import write_model
from safetensors.numpy import load_file, save_file
from sentence_transformers import CrossEncoder
from transformers import AutoModelForCausalLM

from prorank_jax.card import Record, read_record
from prorank_jax.config import PromptConfig
from prorank_jax.errors import InputError
from prorank_jax.export import export_model
from prorank_jax.model.decoder import Decoder
from prorank_jax.model.families import FAMILIES
from prorank_jax.model.hf import Pretrained, load_pretrained
from prorank_jax.prompt import Prompt, build_prompt, load_tokenizer
from prorank_jax.reranker import Reranker

pytestmark = pytest.mark.usefixtures("fast_compilation")

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
    "ends in a newline\n",
    "Où dort-on ?",
    "SELECT * FROM places WHERE price < 10;",
    "「安い」？",
    "price of 1,000 m²…",
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
    "def add(a, b):\n    return a + b\n",
    '{"name": "Bal", "price": [1, 2.5], "open": true}\n\n',
    "<p>It is &lt;cheap&gt;.</p>",
    "tabs\tand\r\nother ends\r\n",
    "👨‍👩‍👧‍👦🏳️‍🌈🇩🇪",
    "混合 text، مع العربية 🙂!",
    "Query:\nDocument:\n",
    "It serves fish. " * 60,
    "价格便宜。" * 80,
    "x" * 900 + "?\n",
]
PAIRS = list(itertools.product(QUERIES, DOCUMENTS))
SOME = PAIRS[::13]
"""Each query and each document, once or twice."""


def changed(pretrained: Pretrained) -> dict:
    """Parameters as after training: other values than those of the folder."""
    return jax.tree.map(lambda leaf: leaf * 1.1, pretrained.params)


def export(model: Path, folder: Path) -> Reranker:
    """Exports changed parameters and returns the reranker made of them in memory."""
    pretrained = load_pretrained(model)
    prompt = build_prompt(load_tokenizer(model), PromptConfig(max_length=300), place=str(model))
    params = changed(pretrained)
    export_model(folder, pretrained, params, prompt, Record("base"))
    return Reranker(Decoder(pretrained.config), params, prompt)


def classifier(model: Path, folder: Path) -> Reranker:
    """Exports changed parameters as a classifier, and returns the reranker made of them in memory."""
    pretrained = load_pretrained(model)
    prompt = build_prompt(load_tokenizer(model), PromptConfig(max_length=300), place=str(model))
    params = changed(pretrained)
    export_model(folder, pretrained, params, prompt, Record("base", kind="seq-cls"))
    return Reranker(Decoder(pretrained.config), params, prompt)


def scores(reranker: Reranker, instruction: str | None = None, pairs: list[tuple[str, str]] = PAIRS) -> np.ndarray:
    """Of pairs in batches of one size for each length: few programs to compile."""
    return reranker.predict(pairs, instruction=instruction, batch_size=1)


def causal_scores(folder: Path, prompt: Prompt) -> np.ndarray:
    """z1 - z0 of the last position of each prompt, one at a time, by torch."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert model.dtype == torch.float32
    found = []
    with torch.no_grad():
        for ids in prompt.encode_batch(PAIRS):
            z0, z1 = model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1, list(prompt.answer_ids)]
            found.append(float(z1 - z0))
    return np.array(found)


@pytest.fixture(scope="module", params=["tied", "untied"])
def exported(
    request: pytest.FixtureRequest, tiny_model: Path, untied_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Reranker]:
    folder = tmp_path_factory.mktemp("exported") / "export"
    return folder, export(tiny_model if request.param == "tied" else untied_model, folder)


def test_scores_in_transformers(exported: tuple[Path, Reranker]) -> None:
    folder, reranker = exported
    ours = scores(reranker)
    assert len(PAIRS) == 300
    lengths = [len(ids) for ids in reranker.prompt.encode_batch(PAIRS)]
    assert max(lengths) == reranker.max_length
    assert lengths.count(reranker.max_length) >= 3 * len(QUERIES)
    assert ours.std() > 0.1
    np.testing.assert_allclose(causal_scores(folder, reranker.prompt), ours, atol=1e-4)


def test_scores_in_sentence_transformers(exported: tuple[Path, Reranker]) -> None:
    folder, reranker = exported
    model = CrossEncoder(str(folder), device="cpu")
    theirs = model.predict(PAIRS, batch_size=8)
    # A sigmoid or the two answers swapped would be far off.
    np.testing.assert_allclose(theirs, scores(reranker), atol=1e-4)
    hits = model.rank(QUERIES[0], DOCUMENTS)
    assert [hit["corpus_id"] for hit in hits] == [hit.index for hit in reranker.rank(QUERIES[0], DOCUMENTS)]


@pytest.mark.parametrize("instruction", ["Does the document refute the query?", "Zwei\nZeilen: 検索", "So?\n"])
def test_scores_with_an_instruction(exported: tuple[Path, Reranker], instruction: str) -> None:
    folder, reranker = exported
    ours = scores(reranker, instruction)
    assert np.abs(ours - scores(reranker)).max() > 0.01
    theirs = CrossEncoder(str(folder), device="cpu").predict(PAIRS, batch_size=8, prompt=instruction)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_scores_of_a_classifier(tiny_model: Path, untied_model: Path, tmp_path: Path, tied: bool) -> None:
    folder = tmp_path / "classifier"
    reranker = classifier(tiny_model if tied else untied_model, folder)
    ours = scores(reranker)
    model = CrossEncoder(str(folder), device="cpu")
    assert type(model[0].auto_model).__name__ == "Qwen2ForSequenceClassification"
    np.testing.assert_allclose(model.predict(PAIRS, batch_size=8), ours, atol=1e-4)
    told = scores(reranker, "Judge.")
    np.testing.assert_allclose(model.predict(PAIRS, batch_size=8, prompt="Judge."), told, atol=1e-4)
    hf_config = json.loads((folder / "config.json").read_text())
    assert hf_config["architectures"] == ["Qwen2ForSequenceClassification"]
    assert hf_config["pad_token_id"] == reranker.prompt.pad_id
    with pytest.raises(InputError, match=r"architectures=\['Qwen2ForSequenceClassification'\] is not supported"):
        Reranker.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_of_each_family(tiny_model: Path, tmp_path: Path, family: str) -> None:
    """The tiny model's tokenizer on random weights of another family."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    caps: dict[str, Any] = {"final_logit_softcapping": None} if family == "gemma2" else {}
    window: dict[str, Any] = {"sliding_window": 64} if family.startswith("gemma") else {}
    write_model(base, family, vocab_size=700, **window, **caps)
    reranker = classifier(base, tmp_path / "classifier")
    ours = scores(reranker, pairs=SOME)
    assert ours.std() > 0.1
    attention = {"attn_implementation": "eager"}  # the only one with Gemma 2's soft caps
    model = CrossEncoder(str(tmp_path / "classifier"), device="cpu", model_kwargs=attention)
    np.testing.assert_allclose(model.predict(SOME, batch_size=8), ours, atol=1e-4)


def test_a_classifier_that_would_rank_otherwise_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    write_model(base, "gemma2", vocab_size=700)
    with pytest.raises(InputError, match=r"^format=seq-cls: a classifier does not cap its logit .*=30.0\), and would"):
        classifier(base, tmp_path / "classifier")
    prompt = build_prompt(load_tokenizer(tiny_model), PromptConfig(), place="x")
    prompt = dataclasses.replace(prompt, pad_id=prompt.pieces.tail_ids[-1])
    pretrained = load_pretrained(tiny_model)
    with pytest.raises(
        InputError, match="^format=seq-cls: the prompt ends with the padding token .*; use format causal"
    ):
        export_model(tmp_path / "x", pretrained, pretrained.params, prompt, Record("base", kind="seq-cls"))


def test_nothing_but_an_older_export_is_replaced(tiny_model: Path, tmp_path: Path) -> None:
    for held in ("notes", "other/model.safetensors"):
        path = tmp_path / held
        path.parent.mkdir(exist_ok=True)
        path.write_text("kept")
        folder = tmp_path / held.split("/")[0]
        with pytest.raises(
            InputError, match=f"^{folder}: there already, and not an exported model; give another folder"
        ):
            export(tiny_model, folder)
        assert path.read_text() == "kept"
    export(tiny_model, tmp_path / "export")
    with pytest.raises(InputError, match="is the base model itself; give another folder"):
        export(tmp_path / "export", tmp_path / "export")


def test_comes_back_bit_for_bit(exported: tuple[Path, Reranker]) -> None:
    folder, reranker = exported
    back = Reranker.from_pretrained(folder)
    assert back.prompt == reranker.prompt
    assert back.max_length == 300
    assert back.decoder == reranker.decoder
    ours, theirs = (jax.tree_util.tree_flatten_with_path(r.params)[0] for r in (reranker, back))
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, one), (_, other) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=str(path))
    # On one device, as the other: batches are as large as there are devices.
    back = dataclasses.replace(back, params=jax.device_put(back.params, jax.devices()[0]))
    np.testing.assert_array_equal(scores(back, pairs=SOME), scores(reranker, pairs=SOME))


def test_an_export_of_an_export_is_the_same_folder(exported: tuple[Path, Reranker], tmp_path: Path) -> None:
    folder, _ = exported
    back = Reranker.from_pretrained(folder)
    record = read_record(folder)
    assert record is not None
    export_model(tmp_path / "again", load_pretrained(folder), back.params, back.prompt, record)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes(), file


def test_a_folder_is_replaced_whole(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "export"
    folder.mkdir(parents=True)
    (folder / "prorank.json").write_text("{}")
    (folder / "model-00001-of-00002.safetensors").write_text("of an older and larger model")
    unfinished = tmp_path / "run" / "export.unfinished"
    unfinished.mkdir()
    (unfinished / "left.by.a.killed.run").write_text("")
    export(tiny_model, folder)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["export"]
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "1_LogitScore/config.json",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "config_sentence_transformers.json",
        "generation_config.json",
        "model.safetensors",
        "modules.json",
        "prorank.json",
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
        export_model(folder, pretrained, {}, prompt, Record("base"))
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
    ours = scores(reranker)
    assert ours.std() > 0.1
    np.testing.assert_allclose(causal_scores(tmp_path / "export", reranker.prompt), ours, atol=1e-4)
    np.testing.assert_allclose(CrossEncoder(str(tmp_path / "export"), device="cpu").predict(PAIRS), ours, atol=1e-4)
    assert Reranker.from_pretrained(tmp_path / "export").prompt == reranker.prompt


@pytest.mark.parametrize("prompt_config", [{"instruction": 'Say "1" for dry places.'}, {"answers": ("a", "b")}])
def test_another_wording_is_exported_with_the_model(tiny_model: Path, tmp_path: Path, prompt_config: dict) -> None:
    pretrained = load_pretrained(tiny_model)
    config = PromptConfig(max_length=300, **prompt_config)
    prompt = build_prompt(load_tokenizer(tiny_model), config, place="x")
    export_model(tmp_path / "export", pretrained, pretrained.params, prompt, Record("base"))
    back = Reranker.from_pretrained(tmp_path / "export")
    assert back.prompt == prompt
    ours = scores(back, pairs=SOME)
    np.testing.assert_allclose(CrossEncoder(str(tmp_path / "export"), device="cpu").predict(SOME), ours, atol=1e-4)
