"""Weights in and out of Hugging Face folders: exactly, sharded or not, in every dtype; or refused in one line."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hf_models import write_model
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2ForCausalLM

from prorank_jax.config import MeshConfig
from prorank_jax.errors import InputError
from prorank_jax.model import weights
from prorank_jax.model.decoder import Decoder
from prorank_jax.model.families import FAMILIES
from prorank_jax.model.hf import load_pretrained, save_pretrained
from prorank_jax.runtime.mesh import make_mesh, shardings


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A folder with an untied Qwen2."""
    folder = tmp_path / "qwen"
    write_model(folder, "qwen2", tie_word_embeddings=False)
    return folder


def refused(folder: Path) -> str:
    """The line that loading the folder is refused with."""
    with pytest.raises(InputError) as error:
        load_pretrained(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def change(folder: Path, **tensors: np.ndarray | None) -> None:
    """Replaces, adds or (None) removes tensors; a dot in a name is written as two underscores."""
    file = folder / "model.safetensors"
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in load_file(file).items() if name not in named}
    save_file(kept | {name: tensor for name, tensor in named.items() if tensor is not None}, file)


def configure(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def shard(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Writes the model of a folder as several files."""
    pretrained = load_pretrained(folder)
    monkeypatch.setattr(weights, "SHARD_BYTES", 100_000)
    out.mkdir()
    save_pretrained(out, pretrained.params, pretrained.config, pretrained.hf_config)
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 1
    return shards


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_weights_are_read_exactly(tmp_path: Path, dtype: str) -> None:
    write_model(tmp_path, "gemma2", dtype=getattr(torch, dtype))
    tensors = load_file(tmp_path / "model.safetensors")
    for ours in ("float32", dtype):
        params = load_pretrained(tmp_path, ours).params
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {ours}
        want = tensors["model.layers.1.mlp.up_proj.weight"].T.astype(np.float32)
        np.testing.assert_array_equal(np.asarray(params["layers"]["mlp"]["up"]["kernel"][1], np.float32), want)


def test_an_export_in_16_bits_is_what_torch_makes_of_it(qwen: Path, tmp_path: Path) -> None:
    pretrained = load_pretrained(qwen)
    for dtype in ("bfloat16", "float16"):
        out = tmp_path / dtype
        out.mkdir()
        save_pretrained(out, pretrained.params, pretrained.config, pretrained.hf_config, dtype=dtype)
        model = Qwen2ForCausalLM.from_pretrained(out)
        assert str(model.dtype) == f"torch.{dtype}"
        theirs = Qwen2ForCausalLM.from_pretrained(qwen, dtype=torch.float32).to(getattr(torch, dtype))
        assert torch.equal(model.lm_head.weight, theirs.lm_head.weight)


def test_parameters_are_placed_as_the_mesh_says(qwen: Path) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    params = load_pretrained(qwen, place=lambda shapes: shardings(mesh, shapes)).params
    query = params["layers"]["attention"]["query"]["kernel"]
    assert query.shape == (3, 48, 6, 8)
    assert {shard.data.shape for shard in query.addressable_shards} == {(3, 12, 6, 8)}
    jax.tree.map(np.testing.assert_array_equal, params, load_pretrained(qwen).params)


def test_large_weights_are_sharded_and_only_what_the_index_names_is_read(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shards = shard(qwen, out, monkeypatch)
    assert all(file.stat().st_size < 110_000 for file in shards)
    save_file({"stray": np.zeros(3, np.float32)}, out / "consolidated.safetensors")
    pretrained, again = load_pretrained(qwen), load_pretrained(out)
    jax.tree.map(np.testing.assert_array_equal, again.params, pretrained.params)
    theirs = Qwen2ForCausalLM.from_pretrained(out)
    np.testing.assert_array_equal(theirs.model.norm.weight.detach().numpy(), pretrained.params["final_norm"]["scale"])


def test_an_index_that_is_wrong(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    shards = shard(qwen, out, monkeypatch)
    index = out / "model.safetensors.index.json"
    written = json.loads(index.read_text())

    stray = next(file for file in shards if file.name != written["weight_map"]["model.norm.weight"])
    before = load_file(stray)
    save_file(before | {"model.norm.weight": np.ones(48, np.float32)}, stray)
    assert refused(out).startswith(f"{stray}: model.safetensors.index.json does not say that tensor model.norm.weight")
    save_file(before, stray)

    index.write_text(json.dumps({"weight_map": {**written["weight_map"], "model.layers.9.x": shards[0].name}}))
    assert f"{shards[0]}: holds no tensor model.layers.9.x, which" in refused(out)

    index.write_text(json.dumps(written))
    shards[0].unlink()
    assert refused(out).startswith(f"{shards[0]}: missing, and named by model.safetensors.index.json")
    for text in ("[]", "{", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        assert "not an index of weights (no weight_map); download it again" in refused(out)
    index.write_text('{"weight_map": {}}')
    assert "lists no tensor" in refused(out)


def test_a_path_in_the_index_stays_in_the_folder(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    shard(qwen, out, monkeypatch)
    index = out / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../qwen/elsewhere.safetensors"}}))
    save_file({"model.norm.weight": np.ones(48, np.float32)}, qwen / "elsewhere.safetensors")
    assert refused(out).startswith(f"{out / 'elsewhere.safetensors'}: missing")


def test_tensors_that_config_json_does_not_fit(qwen: Path) -> None:
    configure(qwen, intermediate_size=80)
    assert "tensor model.layers.0.mlp.down_proj.weight has shape (48, 72), config.json says (48, 80)" in refused(qwen)
    configure(qwen, intermediate_size=72, num_hidden_layers=4, layer_types=None)
    assert "12 tensors are missing, the first is model.layers.3.input_layernorm.weight" in refused(qwen)
    configure(qwen, num_hidden_layers=2)
    assert "tensor model.layers.2.input_layernorm.weight is unknown to this family" in refused(qwen)


def test_tensors_that_are_missing_extra_or_not_finite(qwen: Path) -> None:
    for value in (np.nan, np.inf, -np.inf):
        damaged = np.ones(48, np.float32)
        damaged[7] = value
        change(qwen, model__norm__weight=damaged)
        assert "tensor model.norm.weight holds values that are not finite" in refused(qwen)
    change(qwen, model__norm__weight=None)
    assert "1 tensors are missing, the first is model.norm.weight; download the folder again" in refused(qwen)
    change(qwen, model__norm__weight=np.ones(48, np.float32), model__layers__0__mlp__experts=np.ones(3, np.float32))
    assert "tensor model.layers.0.mlp.experts is unknown to this family; config.json and weights" in refused(qwen)
    change(qwen, model__layers__0__mlp__experts=None, model__norm__weight=np.ones(48, np.int8))
    assert "tensor model.norm.weight is of dtype I8, which is not supported; use weights of float32" in refused(qwen)


def test_not_finite_in_bfloat16(tmp_path: Path) -> None:
    write_model(tmp_path, "llama", dtype=torch.bfloat16)
    change(tmp_path, model__norm__weight=np.full(48, np.inf, ml_dtypes.bfloat16))
    assert "tensor model.norm.weight holds values that are not finite" in refused(tmp_path)


def test_frequencies_that_older_checkpoints_hold_are_read_over(qwen: Path) -> None:
    before = load_pretrained(qwen)
    row = np.ones(4, np.float32)
    change(qwen, model__layers__0__self_attn__rotary_emb__inv_freq=row, model__rotary_emb__inv_freq=row)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(qwen).params, before.params)
    change(qwen, model__rotary_emb__inv_freq=None, rotary_emb__inv_freq=row)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(qwen).params, before.params)


def test_a_tied_unembedding_is_the_embedding(tmp_path: Path) -> None:
    write_model(tmp_path, "qwen3")
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    change(tmp_path, lm_head__weight=embedding)
    assert "unembedding" not in load_pretrained(tmp_path).params
    change(tmp_path, lm_head__weight=embedding + np.float32(1))
    assert "tensor lm_head.weight is not the embedding, and config.json says tie_word_embeddings" in refused(tmp_path)


def renamed(folder: Path, out: Path, name_of: Callable[[str], str]) -> Path:
    """A copy of a folder with other names of its tensors, in one file or in several with their index."""
    shutil.copytree(folder, out)
    for file in out.glob("*.safetensors"):
        save_file({name_of(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    if (index := out / "model.safetensors.index.json").exists():
        written = json.loads(index.read_text())
        listed = {name_of(name): file for name, file in written["weight_map"].items()}
        index.write_text(json.dumps(written | {"weight_map": listed}))
    return out


NAMES: dict[str, Callable[[str], str]] = {
    "of the base model": lambda name: name.removeprefix("model."),
    "of a model in a model": lambda name: f"model.{name}",
}


def in_torch(folder: Path) -> tuple[Any, set[str]]:
    """The model as transformers loads it, and the parameters that it found no tensor for."""
    # Its type knows no second value.
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, found = loaded
    return model, set(found["missing_keys"])


UNKNOWN = " is unknown to this family; config.json and weights disagree"
OTHER_NAMES: dict[str, Callable[[str], str]] = {
    "language_model.model.": lambda name: f"language_model.{name}",
    "model.language_model.": lambda name: name.replace("model.", "model.language_model.", 1),
    "base_model.model.model.": lambda name: f"base_model.model.{name}",
    "transformer.": lambda name: name.replace("model.", "transformer.", 1),
    "_orig_mod.model.": lambda name: f"_orig_mod.{name}",
    "module.model.": lambda name: f"module.{name}",
}


# What the model was wrapped in when it was saved.
REMEDIES = {
    "base_model.model.model.": ": it was saved inside of peft's wrapper; save model.merge_and_unload()",
    "_orig_mod.model.": ": it was saved inside of torch.compile's wrapper; save model._orig_mod",
    "module.model.": ": it was saved inside of a data-parallel wrapper; save model.module",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_names_that_transformers_reads(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a prefix, sharded or not: those that it finds every tensor by, and no others."""
    write_model(tmp_path / "in", family, tie_word_embeddings=family != "llama")
    expected = load_pretrained(tmp_path / "in").params
    shard(tmp_path / "in", tmp_path / "shards", monkeypatch)
    for source, names in (("in", NAMES | OTHER_NAMES), ("shards", NAMES)):
        for name, name_of in names.items():
            folder = renamed(tmp_path / source, tmp_path / f"{source} {name}", name_of)
            assert bool(in_torch(folder)[1]) == (name in OTHER_NAMES), name
            if name in NAMES:
                jax.tree.map(np.testing.assert_array_equal, load_pretrained(folder).params, expected)
            else:
                tensor, _, remedy = refused(folder).partition(": tensor ")[2].partition(UNKNOWN)
                assert tensor in load_file(folder / "model.safetensors")
                assert remedy == REMEDIES.get(name, "")


def test_an_embedding_model_without_prefix(shared: Path) -> None:
    """As Qwen3-Embedding's: the logits are torch's."""
    folder = shared / "trials" / "07-weights-without-model-prefix" / "folder"
    pretrained = load_pretrained(folder)
    ids = np.arange(12)[None] % 32
    hidden, _ = Decoder(pretrained.config).forward(
        pretrained.params, jnp.asarray(ids, jnp.int32), jnp.arange(12)[None], jnp.tril(jnp.ones((1, 12, 12), bool))
    )
    model, missing = in_torch(folder)
    assert not missing
    theirs = model.eval()(torch.from_numpy(ids)).logits.detach().numpy()
    assert theirs.std() > 0.01
    np.testing.assert_allclose(Decoder(pretrained.config).unembed(pretrained.params, hidden), theirs, atol=1e-5)


def test_a_tensor_under_two_names_is_refused(qwen: Path) -> None:
    change(qwen, norm__weight=np.ones(48, np.float32))
    assert "tensors model.norm.weight and norm.weight are both model.norm.weight; take the one" in refused(qwen)


def test_heads_beside_the_language_model_are_named_and_not_read(qwen: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load_pretrained(qwen)
    row = np.ones((1, 48), np.float32)
    change(qwen, score__weight=row, v_head__summary__weight=row, value_head__weight=row)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(qwen).params, before.params)
    [warning] = caplog.messages
    named = "score.weight, v_head.summary.weight, value_head.weight"
    assert warning == f"{qwen}: {named}: not read: the score comes from the language model"


def test_a_folder_of_an_adapter_alone(shared: Path, qwen: Path, tmp_path: Path) -> None:
    merge = (
        "; merge them with peft: AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()"
        ".save_pretrained(OUT), copy the tokenizer's files to OUT, and give OUT"
    )
    trial = shared / "trials" / "13-adapter-folder"
    assert refused(trial) == f"{trial}: an adapter without its base model Qwen/Qwen2.5-0.5B-Instruct{merge}"
    # The weights of an adapter are no pickle to convert; its description may be damaged or gone; some have a config.
    for name in ("adapter_model.bin", "adapter_model.safetensors"):
        for content in (None, "{", "[]", '{"base_model_name_or_path": null}'):
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            (folder / name).write_bytes(b"")
            if content is not None:
                (folder / "adapter_config.json").write_text(content)
            assert refused(folder) == f"{folder}: an adapter without its base model{merge}"
    (qwen / "model.safetensors").rename(qwen / "adapter_model.bin")
    assert refused(qwen) == f"{qwen}: an adapter without its base model{merge}"


MLX = "mlx_lm.fuse --model {} --adapter-path FOLDER --save-path OUT --dequantize, and give OUT"


def test_a_folder_of_an_mlx_adapter(qwen: Path, tmp_path: Path) -> None:
    """As mlx_lm.lora writes it; its description may be damaged or gone."""
    described = {"fine_tune_type": "lora", "model": "mlx-community/Qwen3-0.6B-bf16", "num_layers": 16, "rank": 8}
    for content, base in ((described, described["model"]), ({"model": None}, None), (None, None)):
        for name in ("adapters.safetensors", "0000100_adapters.safetensors", "adapters.npz"):
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            (folder / name).write_bytes(b"")
            if content is not None:
                (folder / "adapter_config.json").write_text(json.dumps(content))
            named = f" {base}" if base else ""
            fuse = MLX.format(base or "BASE")
            assert refused(folder) == f"{folder}: an adapter without its base model{named}; merge them with MLX: {fuse}"
            (folder / name).unlink()
            if content is described:
                assert refused(folder).endswith(fuse)
    (qwen / "model.safetensors").rename(qwen / "adapters.safetensors")
    assert refused(qwen).endswith(MLX.format("BASE"))


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING"])
def test_an_adapter_that_cannot_be_merged(kind: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    described = {"peft_type": kind, "base_model_name_or_path": "x/y"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(described))
    assert refused(tmp_path) == (
        f"{tmp_path / 'adapter_config.json'}: peft_type={kind!r}: cannot be merged with its base model x/y, and is not "
        "supported; use a LoRA adapter, or a model that was trained whole"
    )


def test_a_model_that_holds_an_adapters_tensors(qwen: Path) -> None:
    """As model.save_pretrained of the model inside of peft's writes it, and save_model of the whole."""
    row = np.ones((2, 48), np.float32)
    for name in (
        *("model.layers.0.self_attn.q_proj.lora_A.default.weight", "model.layers.0.self_attn.q_proj.base_layer.weight"),
        *("base_model.model.model.layers.0.mlp.up_proj.lora_B.weight", "model.embed_tokens.lora_embedding_A.default"),
        *("model.layers.0.self_attn.q_proj.lora_magnitude_vector.weight", "lm_head.modules_to_save.default.weight"),
    ):
        change(qwen, **{name: row})
        assert refused(qwen) == (
            f"{qwen / 'model.safetensors'}: tensor {name} is an adapter's, which was not merged; merge it with peft: "
            "model.merge_and_unload().save_pretrained(OUT), and give OUT"
        )
        change(qwen, **{name: None})
    assert load_pretrained(qwen)


def test_json_with_a_byte_order_mark(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some editors write it."""
    out = tmp_path / "out"
    shard(qwen, out, monkeypatch)
    for name in ("config.json", "model.safetensors.index.json"):
        (out / name).write_text((out / name).read_text(), encoding="utf-8-sig")
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(out).params, load_pretrained(qwen).params)
    described = tmp_path / "adapter" / "adapter_config.json"
    described.parent.mkdir()
    described.write_text('{"base_model_name_or_path": "x/y"}', encoding="utf-8-sig")
    assert "an adapter without its base model x/y; merge" in refused(described.parent)


def test_an_adapter_beside_a_model_is_named_and_not_read(qwen: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load_pretrained(qwen)
    for name in ("adapter_model.safetensors", "adapters.safetensors"):
        shutil.copy(qwen / "model.safetensors", qwen / name)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(qwen).params, before.params)
    assert caplog.messages == [
        f"{qwen / 'adapter_model.safetensors'}: not read: the model is what model.safetensors holds without it"
    ]


def test_files_that_are_damaged_or_pickles(qwen: Path) -> None:
    file = qwen / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:1000], whole[:-1000], b"", b"\xff" * 100, whole[:8] + b"}" + whole[9:]):
        file.write_bytes(damaged)
        assert refused(qwen).startswith(f"{file}: not readable as safetensors (")
    file.rename(qwen / "pytorch_model.bin")
    assert refused(qwen) == (
        f"{qwen / 'pytorch_model.bin'}: a pickle, which can run code, is not read; convert it with transformers: "
        "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OUT)"
    )
    (qwen / "pytorch_model.bin").unlink()
    assert refused(qwen).startswith(f"{qwen}: no model.safetensors; a model folder has")
    (qwen / "adapter_config.json").write_text("{}")
    assert refused(qwen).startswith(f"{qwen}: an adapter without its base model; merge them with peft")


def test_a_config_of_more_layers_than_memory_holds(qwen: Path) -> None:
    path = qwen / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 10**9, "layer_types": None}))
    assert refused(qwen).startswith(f"{path}: num_hidden_layers=1000000000: no model has more than 10000 layers")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 9999}))
    assert refused(qwen).startswith(f"{path}: num_hidden_layers=9999, and the weights are ")


def test_an_index_that_names_what_no_folder_can_hold(qwen: Path) -> None:
    (qwen / "model.safetensors").unlink()
    index = qwen / "model.safetensors.index.json"
    for name in ("a" * 5000, "a\0b", "../" * 9 + "etc"):
        index.write_text(json.dumps({"weight_map": {"x": name}}))
        assert refused(qwen).startswith(f"{qwen}/") and "missing, and named by model.safetensors.index.json" in refused(
            qwen
        )
    for content in ("[" * 10**5, '{"weight_map": 1}', '{"weight_map": {"x": 1}}'):
        index.write_text(content)
        assert refused(qwen).startswith(f"{index}: not an index of weights")


def test_a_config_that_is_none(qwen: Path) -> None:
    path = qwen / "config.json"
    for text, message in (("{", "not valid JSON"), ("[1]", "holds no JSON object"), ("[" * 10**5, "not valid JSON")):
        path.write_text(text)
        assert refused(qwen).startswith(f"{path}: {message}")
    path.unlink()
    assert refused(qwen).startswith(f"{path}: missing")


def test_a_hub_id_is_found_in_the_local_cache(qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--some-model"
    shutil.copytree(qwen, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = load_pretrained("someone/some-model")
    assert found.folder == repository / "snapshots" / commit
    jax.tree.map(np.testing.assert_array_equal, found.params, load_pretrained(qwen).params)


class _Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download needs; `asked` collects the files that were."""

    repository: Path
    asked: ClassVar[set[str]] = set()
    cut = ""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        commit = "0123456789abcdef0123456789abcdef01234567"
        files = {path.relative_to(self.repository).as_posix(): path for path in self.repository.rglob("*.*")}
        if self.path.startswith("/api/models/someone/some-model/tree/"):
            tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in files]
            body, name = json.dumps(tree).encode(), "api"
        elif self.path.startswith("/api/models/someone/some-model"):
            described = {"id": "someone/some-model", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            body, name = json.dumps(described).encode(), "api"
        else:
            name = self.path.partition(f"/someone/some-model/resolve/{commit}/")[2]
            body = files[name].read_bytes() if name in files else b""
            self.asked.add(name)
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json" if name == "api" else "application/octet-stream")
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if name == self.cut else body)


def test_a_hub_id_is_downloaded_and_nothing_else_of_its_repository(
    qwen: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, qwen, dirs_exist_ok=True)
    (qwen / "pytorch_model.bin").write_bytes(b"a pickle")
    (qwen / "original").mkdir()
    (qwen / "original" / "consolidated.safetensors").write_bytes(b"of another shape")
    (qwen / "modeling_own.py").write_text("raise SystemExit")
    monkeypatch.setattr(_Hub, "repository", qwen, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
        }
        (tmp_path / "documents.txt").write_text("It serves fish.\nIt is cheap.\n")
        prorank = Path(sys.executable).with_name("prorank")
        command = [str(prorank), "rerank", "someone/some-model", str(tmp_path / "documents.txt"), "--query", "fish?"]

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)

        monkeypatch.setattr(_Hub, "cut", "config.json")
        broken = run()
        monkeypatch.setattr(_Hub, "cut", "")
        done = run()
        server.shutdown()
    assert broken.returncode == 2
    assert broken.stderr.splitlines()[-1].startswith("prorank: someone/some-model: not a folder here, and the hub did")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= _Hub.asked
    assert not {name for name in _Hub.asked if name.endswith((".bin", ".py")) or "consolidated" in name}


def test_a_source_that_is_neither_folder_nor_reachable_hub_id_is_refused() -> None:
    with pytest.raises(
        InputError, match="^./nowhere: no such model folder; give a folder with config.json, a GGUF file, or a hub"
    ):
        load_pretrained("./nowhere")
    with pytest.raises(InputError, match="^nobody/nothing: not a folder here, and the hub did not give it .* folder$"):
        load_pretrained("nobody/nothing")
