"""The decoder against torch's own implementation and against a published reference run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from prorank_jax.errors import InputError
from prorank_jax.model.attention import causal_mask
from prorank_jax.model.decoder import Decoder, DecoderConfig, KeyValues
from prorank_jax.model.families import decoder_config
from prorank_jax.model.hf import load_pretrained, save_pretrained


def write_qwen(folder, **changes):
    sizes = {
        "vocab_size": 211,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 72,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**(sizes | changes))).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide a swapped or dropped one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    return model


def our_logits(pretrained, tokens, positions, mask):
    decoder = Decoder(pretrained.config)
    hidden, _ = decoder.forward(pretrained.params, tokens, positions, mask)
    return np.asarray(decoder.unembed(pretrained.params, hidden))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "num_key_value_heads": 1},
        {"num_key_value_heads": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ],
)
def test_logits_equal_torch_at_600_tokens_with_padding_on_either_side(tmp_path, changes):
    model = write_qwen(tmp_path, **changes)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 211, (2, 600))
    right = np.arange(600)[None] < np.array([[600], [523]])
    for real in (right, right[:, ::-1]):
        with torch.no_grad():
            position_ids = torch.from_numpy((np.cumsum(real, 1) - 1).clip(0))
            want = model(
                torch.from_numpy(tokens), attention_mask=torch.from_numpy(real.copy()), position_ids=position_ids
            ).logits.numpy()
        causal = np.tril(np.ones((600, 600), bool))
        got = our_logits(
            load_pretrained(tmp_path),
            jnp.asarray(tokens, jnp.int32),
            jnp.asarray(position_ids.numpy(), jnp.int32),
            jnp.asarray(causal[None] & real[:, None, :]),
        )
        assert np.abs(want).max() > 1
        assert np.abs(got - want)[real].max() < 1e-4


def test_export_gives_back_the_imported_tensors_bit_for_bit(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    write_qwen(tmp_path / "in", tie_word_embeddings=False)
    pretrained = load_pretrained(tmp_path / "in")
    save_pretrained(tmp_path / "out", pretrained.params, pretrained.config, pretrained.hf_config)
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("in", "out"))
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
    model = Qwen2ForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.tie_word_embeddings is False


def test_bfloat16_weights_are_read_exactly(tmp_path):
    model = write_qwen(tmp_path)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    want = model.model.embed_tokens.weight.detach().float().numpy()
    np.testing.assert_array_equal(load_pretrained(tmp_path).params["embedding"], want)


def test_stories260k_reproduces_its_reference_run(shared):
    folder = shared / "models" / "stories260K"
    reference = json.loads((folder / "reference.json").read_text())
    ids = jnp.asarray([reference["ids"]], jnp.int32)
    length = ids.shape[1]
    pretrained = load_pretrained(folder)
    logits = our_logits(pretrained, ids, jnp.arange(length)[None], causal_mask(jnp.array([length]), length))
    log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(logits[0]), axis=-1))
    nll = -log_probs[np.arange(length - 1), np.asarray(ids)[0, 1:]].mean()
    assert abs(nll - 0.413031) < 1e-5


def test_cached_decoding_equals_the_full_forward():
    config = DecoderConfig(97, 32, 2, 4, 2, 8, 48, 1e4, 1e-6, qkv_bias=True, tied=True)
    decoder = Decoder(config)
    params = jax.tree.map(lambda x: x * 8.0, decoder.init(jax.random.key(0)))
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 97)
    positions = jnp.tile(jnp.arange(9), (2, 1))
    mask = causal_mask(jnp.array([9, 9]), 9)
    full, kv = decoder.forward(params, tokens, positions, mask)
    _, prefix = decoder.forward(params, tokens[:, :5], positions[:, :5], mask[:, :5, :5])
    _, middle = decoder.forward(params, tokens[:, 5:7], positions[:, 5:7], mask[:, 5:7, :7], (prefix,))
    last, _ = decoder.forward(params, tokens[:, 7:], positions[:, 7:], mask[:, 7:], (prefix, middle))
    np.testing.assert_allclose(last, full[:, 7:], atol=1e-5)
    np.testing.assert_allclose(middle.keys, kv.keys[:, :, 5:7], atol=1e-5)
    assert isinstance(middle, KeyValues)


def test_a_published_config_gives_the_published_number_of_parameters():
    config = decoder_config(
        {
            "model_type": "qwen2",
            "vocab_size": 151_936,
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "rope_theta": 1e6,
            "tie_word_embeddings": True,
        },
        "Qwen2.5-0.5B",
    )
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 494_032_768


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type='bert' is not supported; use a model of one of: qwen2, llama"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_scaling='yarn' is not supported; only 'default' is"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ({"num_key_value_heads": 4}, "num_attention_heads=6 is not a multiple of num_key_value_heads=4"),
        ({"intermediate_size": 80}, "tensor model.layers.0.mlp.down_proj.weight has shape (48, 72)"),
        ({"num_hidden_layers": 4}, "12 tensors are missing, the first is model.layers.3."),
        ({"num_hidden_layers": 2}, "is unknown to this family"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(tmp_path, change, message):
    write_qwen(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as error:
        load_pretrained(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_weights_are_refused(tmp_path):
    write_qwen(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"model.norm.weight": np.full(48, np.nan, np.float32)}, file)
    with pytest.raises(InputError, match=r"model\.norm\.weight holds values that are not finite"):
        load_pretrained(tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="not readable as safetensors"):
        load_pretrained(tmp_path)
    file.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="a pickle, which can run code"):
        load_pretrained(tmp_path)


def test_large_weights_are_sharded_and_only_what_the_index_names_is_read(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    write_qwen(tmp_path / "in")
    pretrained = load_pretrained(tmp_path / "in")
    monkeypatch.setattr("prorank_jax.model.hf.SHARD_BYTES", 100_000)
    save_pretrained(out, pretrained.params, pretrained.config, pretrained.hf_config)
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 1
    save_file({"stray": np.zeros(3, np.float32)}, out / "consolidated.safetensors")

    again = load_pretrained(out)
    jax.tree.map(np.testing.assert_array_equal, again.params, pretrained.params)
    theirs = Qwen2ForCausalLM.from_pretrained(out)
    np.testing.assert_array_equal(theirs.model.norm.weight.detach().numpy(), pretrained.params["final_norm"]["scale"])

    shards[0].unlink()
    with pytest.raises(InputError, match=f"{shards[0].name}: missing, and named by model.safetensors.index.json"):
        load_pretrained(out)
    (out / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match="not an index of weights"):
        load_pretrained(out)


def test_a_source_that_is_neither_folder_nor_reachable_hub_id_is_refused():
    with pytest.raises(InputError, match="no such model folder"):
        load_pretrained("./nowhere")
    with pytest.raises(InputError, match="the hub did not give it"):
        load_pretrained("nobody/nothing")
