"""GGUF files as models: transformers' own reader, and the models that the files were written of, say what is right."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from gguf import GGMLQuantizationType, GGUFWriter
from gguf_files import write_gguf
from hf_models import our_logits, torch_logits, write_model
from packaging.version import Version
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prorank_jax.cache import cache_folder
from prorank_jax.errors import InputError
from prorank_jax.model.decoder import Decoder
from prorank_jax.model.gguf_folder import folder_of
from prorank_jax.model.hf import load_pretrained
from prorank_jax.reranker import Reranker

pytestmark = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"), reason="tokenizers of GGUF files need transformers 5.24"
)
Prorank = Callable[..., tuple[int, str, str]]

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 96}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 128},
    # As published but for the sizes: what GGUF does not hold follows from these.
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 8},
    "gemma3_text": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 8, "num_hidden_layers": 7},
}
KINDS = [GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1]
TEXTS = ["Where is the mill?", " two  spaces\n\nand lines", "naïve café", "磨坊在哪里", "أين الطاحونة", "🦀🐚"]
TEXTS += ["if x != 1:\n\treturn", "<|im_end|>"]


def written(tmp_path: Path, family: str, tiny_model: Path, **options: Any) -> Path:
    """A GGUF file of a small random model of a family, with the tokenizer of the tests' own model."""
    model = tmp_path / "model"
    write_model(model, family, **(SHAPE | {"vocab_size": 700} | FAMILIES[family]))
    return write_gguf(tmp_path / "small.gguf", model, tokenizer=tiny_model, **options)


def refusal(file: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_pretrained(file)
    return str(caught.value)


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, KINDS[0]) for family in FAMILIES), *(("llama", kind) for kind in KINDS[1:])],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_file_is_read_as_transformers_reads_it(
    family: str, kind: GGMLQuantizationType, tmp_path: Path, tiny_model: Path
) -> None:
    file = written(tmp_path, family, tiny_model, kind=kind)
    pretrained = load_pretrained(file)
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, attn_implementation="eager").eval()
    tensors = load_file(pretrained.folder / "model.safetensors")
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor, state[name], atol=1e-6, err_msg=name)
    tokens = np.random.default_rng(0).integers(0, 700, (2, 20))
    real = np.ones(tokens.shape, bool)
    expected, positions = torch_logits(theirs, tokens, real)
    np.testing.assert_allclose(
        our_logits(Decoder(pretrained.config), pretrained.params, tokens, positions, real), expected, atol=1e-3
    )
    if kind == GGMLQuantizationType.F32:
        for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items():
            np.testing.assert_allclose(tensors[name], tensor, atol=1e-6, err_msg=name)


def test_the_tokenizer_is_the_one_in_the_file(tmp_path: Path, tiny_model: Path) -> None:
    file = written(tmp_path, "qwen2", tiny_model)
    folder = load_pretrained(file).folder
    ours, original = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tiny_model)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)
    for text in TEXTS:
        assert ours(text).input_ids == original(text).input_ids == theirs(text).input_ids
    assert ours.chat_template == original.chat_template
    assert (ours.eos_token, ours.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_scores_are_those_of_the_folder_that_the_file_was_made_of(tmp_path: Path, tiny_model: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model, tokenizer=tiny_model)
    pairs = [("Where is the mill?", "The mill stands by the river."), ("mill", "a lighthouse")]
    np.testing.assert_allclose(
        Reranker.from_pretrained(file).predict(pairs), Reranker.from_pretrained(tiny_model).predict(pairs), atol=1e-6
    )


def test_a_split_file_is_one_model(tmp_path: Path, tiny_model: Path) -> None:
    whole = load_pretrained(write_gguf(tmp_path / "whole.gguf", tiny_model, tokenizer=tiny_model))
    first = write_gguf(tmp_path / "split.gguf", tiny_model, tokenizer=tiny_model, parts=3)
    assert len(list(tmp_path.glob("split-*.gguf"))) == 3
    split = load_pretrained(first)
    assert (split.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    missing = first.with_name(first.name.replace("-00001-", "-00002-"))
    missing.unlink()
    assert refusal(first) == f"{missing}: missing, one of 3 parts of this model; put all parts into one folder"


def test_a_file_is_written_as_a_folder_once(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], own_cache: None
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model, tokenizer=tiny_model)
    folder = folder_of(file)
    assert folder.is_relative_to(cache_folder())
    assert capsys.readouterr().err == f"prorank: {file}: written once as a model folder to {folder}\n"
    moved = tmp_path / "elsewhere.gguf"
    shutil.move(file, moved)
    assert folder_of(moved) == folder
    assert capsys.readouterr().err == ""
    # One that was cut short is no folder.
    (folder / "config.json").unlink()
    assert folder_of(moved) == folder and (folder / "config.json").is_file()


def test_the_command_writes_a_folder(tmp_path: Path, tiny_model: Path, prorank: Prorank) -> None:
    file, out = write_gguf(tmp_path / "tiny.gguf", tiny_model, tokenizer=tiny_model), tmp_path / "out"
    assert prorank("import", file, out) == (0, f"model: {out}\n", "")
    ours, theirs = load_file(out / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    assert {name: tensor.tobytes() for name, tensor in ours.items()} == {
        name: tensor.tobytes() for name, tensor in theirs.items()
    }
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert prorank("import", file, out) == (2, "", f"prorank: {out}: there already; give another folder\n")
    none = tmp_path / "none.gguf"
    assert prorank("import", none, tmp_path / "b") == (2, "", f"prorank: {none}: no such file; give a GGUF file\n")


def test_rotary_factors_of_llama_3(tmp_path: Path, tiny_model: Path) -> None:
    model = tmp_path / "model"
    scaling = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    theirs = write_model(model, "llama", **(SHAPE | {"vocab_size": 700, "rope_parameters": scaling}))
    frequencies = 500_000.0 ** (-np.arange(0, 16, 2) / 16)
    factors = (frequencies / theirs.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    assert factors.max() > 10
    stored = {"rope_freqs.weight": factors}
    file = write_gguf(tmp_path / "small.gguf", model, tokenizer=tiny_model, tensors=stored)
    assert load_pretrained(file).config == load_pretrained(model).config
    stored["rope_freqs.weight"] = factors * np.float32(1.5)
    other = write_gguf(tmp_path / "other.gguf", model, tokenizer=tiny_model, tensors=stored)
    assert "rope_freqs.weight holds rotary factors of no published Llama 3; use another model" in refusal(other)


def test_files_that_are_no_model(tmp_path: Path, tiny_model: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_model, tokenizer=tiny_model)
    content = file.read_bytes()
    for name, bytes_ in {
        "cut": content[: len(content) * 2 // 3],
        "head": content[:1000],
        "empty": b"",
        "foreign": b"PK\x03\x04" + content[4:],
        "newer": content[:4] + (99).to_bytes(4, "little") + content[8:],
    }.items():
        bad = tmp_path / f"{name}.gguf"
        bad.write_bytes(bytes_)
        told = refusal(bad)
        assert told.startswith(f"{bad}: not readable as GGUF (") and told.endswith("download it again"), told
    assert not [folder for folder in (cache_folder() / "gguf").iterdir() if folder.name.endswith(".unfinished")]


def test_what_is_not_supported_is_named(tmp_path: Path, tiny_model: Path) -> None:
    def refused(**options: Any) -> str:
        return refusal(write_gguf(tmp_path / "tiny.gguf", tiny_model, **({"tokenizer": tiny_model} | options)))

    told = refused(tokenizer=None)
    assert "tokenizer.ggml.tokens is missing, so the file holds no tokenizer; use one that does" in told
    assert "qwen2.expert_count=8 is not supported; use another model" in refused(extra={"qwen2.expert_count": 8})
    assert "rope_type='yarn' is not supported" in refused(extra={"qwen2.rope.scaling.type": "yarn"})
    spare = {"blk.0.ffn_gate_exps.weight": np.zeros((4, 4), np.float32)}
    assert "tensor blk.0.ffn_gate_exps.weight is unknown to the architecture qwen2" in refused(tensors=spare)
    not_finite = np.full((700, 32), np.nan, np.float32)
    assert "output.weight holds values that are not finite; the file is damaged" in refused(
        tensors={"output.weight": not_finite}
    )


def test_another_architecture_is_named(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert refusal(tmp_path / "other.gguf") == (
        f"{tmp_path / 'other.gguf'}: general.architecture='mamba' is not supported; use a file of one of: "
        "llama, qwen2, qwen3, gemma2, gemma3"
    )


def test_metadata_that_the_tensors_do_not_fit(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    file = write_gguf(tmp_path / "tiny.gguf", folder, tokenizer=tiny_model)
    assert refusal(file) == (
        f"{file}: tensor blk.0.ffn_gate.weight has shape (48, 32), the metadata say (64, 32); they disagree"
    )
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    file = write_gguf(tmp_path / "tiny.gguf", folder, tokenizer=tiny_model)
    assert "tensor blk.2.attn_norm.weight is missing; the file does not hold a whole model" in refusal(file)
