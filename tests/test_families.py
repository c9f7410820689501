"""Each family against torch's own implementation; each field of `config.json` read, or refused by name."""

import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_models import our_logits, torch_logits, write_model
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from prorank_jax.errors import InputError
from prorank_jax.model.attention import Rope, rotary_frequencies, within_window
from prorank_jax.model.config_fields import INERT
from prorank_jax.model.decoder import Decoder
from prorank_jax.model.families import FAMILIES, decoder_config
from prorank_jax.model.hf import causal_config, load_pretrained, save_pretrained

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# A window of 64 is much shorter than the 600 tokens, and longer than the 5 of some padding.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2 untied, one key-value head": ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    "qwen2 odd head size": ("qwen2", {"head_dim": 10, "num_key_value_heads": 6}),
    "qwen2 upper layers sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "qwen3 untied, one key-value head": (
        "qwen3",
        {"tie_word_embeddings": False, "num_key_value_heads": 1, "head_dim": 12},
    ),
    "qwen3 as many key-value heads": ("qwen3", {"num_key_value_heads": 6, "head_dim": 6, "hidden_size": 54}),
    "llama": ("llama", {}),
    "llama 3.1 rope": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": False, "head_dim": 32}),
    "llama linear rope, one key-value head": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, "num_key_value_heads": 1},
    ),
    "gemma2": ("gemma2", {"sliding_window": 64, "head_dim": 16}),
    "gemma2 untied, one key-value head": (
        "gemma2",
        {"sliding_window": 64, "tie_word_embeddings": False, "num_key_value_heads": 1, "query_pre_attn_scalar": 24},
    ),
    "gemma2 without caps": (
        "gemma2",
        {
            "sliding_window": 7,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "num_key_value_heads": 6,
            "head_dim": 10,
        },
    ),
    "gemma3_text": ("gemma3_text", {"sliding_window": 64, "num_hidden_layers": 7, "head_dim": 16}),
    "gemma3_text untied, one key-value head": (
        "gemma3_text",
        {
            "sliding_window": 64,
            "tie_word_embeddings": False,
            "num_key_value_heads": 1,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "final_logit_softcapping": 20.0,
        },
    ),
    "gemma3_text linear rope": (
        "gemma3_text",
        {
            "sliding_window": 64,
            "num_key_value_heads": 6,
            "head_dim": 10,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_torch_before_and_after_an_export(name: str, tmp_path: Path) -> None:
    """600 tokens, as wrong positions do not show in short prompts; padding on either side."""
    family, changes = MODELS[name]
    model = write_model(tmp_path / "in", family, **changes)
    pretrained = load_pretrained(tmp_path / "in")
    (tmp_path / "out").mkdir()
    save_pretrained(tmp_path / "out", pretrained.params, pretrained.config, pretrained.hf_config)
    back = load_pretrained(tmp_path / "out")

    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("in", "out"))
    assert before.keys() == after.keys()
    for tensor in before:
        np.testing.assert_array_equal(before[tensor], after[tensor])
    assert back.config == pretrained.config

    tokens = np.random.default_rng(0).integers(0, 211, (2, 600))
    right = np.arange(600)[None] < np.array([[595], [523]])
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    for real in (right, right[:, ::-1]):
        theirs, positions = torch_logits(model, tokens, real)
        ours = our_logits(Decoder(back.config), back.params, tokens, positions, real)
        assert np.abs(theirs).max() > 1
        assert np.abs(ours - theirs)[real].max() < 1e-4
        np.testing.assert_array_equal(torch_logits(exported, tokens, real)[0], theirs)


BARE: dict[str, Any] = {
    **{"model_type": "llama", "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6},
    **{"intermediate_size": 72, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_file_leaves_out_means_what_hugging_face_takes_it_to_mean(family: str) -> None:
    sizes = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 9, "num_attention_heads": 32}
    bare: dict[str, Any] = {"model_type": family, **sizes, "intermediate_size": 40}
    written = AutoConfig.for_model(**bare).to_dict()
    assert len(written) > 20
    assert decoder_config(bare, "bare") == decoder_config(written, "written")


# Parameters (torch counts them too), and the sizes in the models' configurations.
PUBLISHED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "published.json").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    """In milliseconds: no array is made."""
    count, config = PUBLISHED[name]["parameters"], PUBLISHED[name]["config"]
    decoder = Decoder(decoder_config(config, name))
    shapes = jax.eval_shape(decoder.init, jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
    token, mask = jnp.zeros((2, 128), jnp.int32), jnp.ones((2, 128, 128), bool)
    hidden, own = jax.eval_shape(decoder.forward, shapes, token, token, mask)
    assert hidden.shape == (2, 128, decoder.config.width)
    assert own.keys.shape == (decoder.config.layers, 2, 128, decoder.config.kv_heads, decoder.config.head_size)
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert sum(parameter.numel() for parameter in theirs.parameters()) == count


def test_the_documentation_names_the_published_sizes() -> None:
    text = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
    assert [name for name in PUBLISHED if name not in text] == []


def test_llama3_frequencies_by_hand() -> None:
    """Three pairs of a head of 6: wavelengths 2 pi, 2 pi 100^(1/3), 2 pi 100^(2/3) = 6.28, 29.2, 135 positions.

    Turns within the original 64 positions: 10.2, 2.19, 0.473. Above 4 a frequency stays, under 1 it is divided by 8;
    the one between keeps (2.194 - 1) / 3 = 0.398 of itself, and an eighth of the rest: 0.473 of 0.2154.
    """
    rope = Rope(100.0, 8.0, (1.0, 4.0, 64.0))
    np.testing.assert_allclose(rotary_frequencies(rope, 6), [1.0, 0.10196, 0.046416 / 8], rtol=1e-3)
    # Were the wavelengths compared instead of the turns, the first would be the one that is divided.
    np.testing.assert_allclose(rotary_frequencies(Rope(100.0), 6), [1.0, 0.21544, 0.046416], rtol=1e-4)


def test_a_window_of_two_sees_itself_and_the_token_before() -> None:
    positions = jnp.arange(4)[None]
    causal = np.tril(np.ones((4, 4), bool))
    seen = np.asarray(within_window(positions, positions, 2))[0] & causal
    assert seen.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, True, True, False],
        [False, False, True, True],
    ]


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("qwen2", {"model_type": "bert"}, "model_type='bert' is not supported; use a model of one of: qwen2, qwen3, "),
        ("qwen2", {"model_type": None}, "model_type=None is not supported; use a model of one of: qwen2, qwen3, llama"),
        ("qwen2", {"hidden_size": None}, "hidden_size=None is not a 32-bit number above 0"),
        ("qwen2", {"hidden_size": "48"}, "hidden_size='48' is not a 32-bit number above 0"),
        ("qwen2", {"num_hidden_layers": 2.5}, "num_hidden_layers=2.5 is not a whole number"),
        ("qwen2", {"layer_types": [["full_attention"]] * 3}, "layer_types names ['full_attention'], which is not supp"),
        ("qwen2", {"hidden_act": ["silu"]}, "hidden_act=['silu'] is not supported"),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": "2"},
            "max_window_layers='2' is not a whole number",
        ),
        ("qwen2", {"rms_norm_eps": 1e39}, "rms_norm_eps=1e+39 is not a 32-bit number above 0"),
        ("qwen2", {"rope_theta": 10**400}, "rope_theta=1000"),
        ("qwen2", {"rms_norm_eps": math.nan}, "rms_norm_eps=nan is not a 32-bit number above 0"),
        ("qwen2", {"tie_word_embeddings": "no"}, "tie_word_embeddings='no' is neither true nor false"),
        ("qwen2", {"num_key_value_heads": 4}, "num_attention_heads=6 is not a multiple of num_key_value_heads=4"),
        ("qwen2", {"head_dim": 9}, "head_dim=9: rotary embedding needs an even head size"),
        ("qwen2", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; only silu, gelu_pytorch_tanh are"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "yarn"}},
            "rope_parameters.rope_type='yarn' is not supported; only",
        ),
        ("qwen2", {"rope_scaling": {"type": "dynamic"}}, "rope_parameters.rope_type='dynamic' is not supported"),
        ("qwen2", {"rope_scaling": {"mrope_section": [1]}}, "rope_parameters.mrope_section=[1] is not supported with"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor is missing"),
        (
            "llama",
            {"rope_parameters": {**LLAMA3, "factor": -1}},
            "rope_parameters.factor=-1 is not a 32-bit number above 0",
        ),
        (
            "llama",
            {"rope_parameters": {**LLAMA3, "low_freq_factor": 4}},
            "rope_parameters.high_freq_factor=4.0 is not above",
        ),
        ("llama", {"rope_parameters": [1]}, "rope_parameters=[1] is not a mapping"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported; only 1.0 is"),
        ("llama", {"attention_bias": True}, "attention_bias=True is not supported for llama; only False is"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True is not supported for llama; only False is"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved=True is not supported for llama"),
        ("qwen2", {"attention_bias": False}, "attention_bias=False is not supported for qwen2; only True is"),
        ("qwen2", {"is_causal": False}, "is_causal=False is not supported for qwen2; only True is"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported for gemma3"),
        ("gemma2", {"sliding_window": None}, "sliding_window=None is not a 32-bit number above 0"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 3}, "layer_types names 'chunked_attention', which is not"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries and num_hidden_layers=3"),
        ("qwen2", {"num_experts": 8}, "num_experts=8 is not supported for qwen2; if the model is the same without"),
        ("qwen2", {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported for qwen2"),
        (
            "qwen2",
            {"auto_map": {"AutoModel": "m.M"}},
            "auto_map={'AutoModel': 'm.M'} asks for code of the folder's own",
        ),
        ("qwen2", {"architectures": ["Qwen2Model"]}, "architectures=['Qwen2Model'] is not supported; only ['Qwen2For"),
    ],
)
def test_a_field_that_asks_for_other_mathematics_is_refused_by_name(
    family: str, change: dict[str, Any], message: str
) -> None:
    sizes = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6}
    config = {"model_type": family, **sizes, "num_key_value_heads": 2, "intermediate_size": 72}
    with pytest.raises(InputError) as error:
        decoder_config(config | change, "config.json")
    assert str(error.value).startswith(f"config.json: {message}")
    assert "\n" not in str(error.value)


def test_a_missing_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"^config.json: field 'hidden_size' is missing"):
        decoder_config({"model_type": "qwen2", "num_attention_heads": 6}, "config.json")


def test_notes_of_other_tools_and_fields_that_are_off_are_read_over() -> None:
    sizes = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6}
    config = {"model_type": "llama", **sizes, "intermediate_size": 72}
    # As SmolLM2 has them, and TinyLlama; a note of a fine-tuning tool; an old spelling of "no scaling".
    notes = {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}}
    notes |= {"pretraining_tp": 1, "unsloth_fixed": True, "rope_scaling": None, "some_new_thing": None}
    assert decoder_config(config | notes, "noted") == decoder_config(config, "plain")


def test_rope_fields_that_its_type_does_not_read() -> None:
    """transformers reads the original length for some types only, and no factor for the default one."""
    for rope in (Rope(1e4), Rope(1e4, 2.0)):
        kind = "default" if rope.factor == 1 else "linear"
        written = {"rope_type": kind, "factor": rope.factor, "original_max_position_embeddings": 512}
        assert decoder_config(BARE | {"rope_scaling": written}, "f").rope == rope


def test_the_base_class_and_generation_change_no_logit() -> None:
    """Every field that transformers gives any model, or its generation, but the encoder's switch."""
    fields = {*PreTrainedConfig().to_dict(), *GenerationConfig().to_dict()} - {"is_encoder_decoder"}
    assert {name for name in fields if not name.startswith("_")} - INERT - {"architectures"} == {
        *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
        *("forced_bos_token_id", "forced_eos_token_id"),
    }
    plain = decoder_config(BARE, "plain")
    assert decoder_config(BARE | dict.fromkeys(fields - {"architectures", "model_type"}, 7), "set") == plain


def test_every_trial_of_a_note_is_read(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = sorted((shared / "trials" / "01-config-notes-of-tools").glob("*.json"))
    assert len(paths) >= 8
    for path in paths:
        written = json.loads(path.read_text())
        config = AutoConfig.for_model(**written)
        read = decoder_config(written, path.name)
        assert (read.width, read.layers) == (config.hidden_size, config.num_hidden_layers)
    # Only one file has a field that nobody knows.
    assert [record.message for record in caplog.records] == [
        "internal-version-allam-7b.json: internal_version='7b-alpha-v2.33.0.30': unknown, and taken for notes of other "
        "tools that change no score"
    ]


# Fields of fine-tuned models as tools write them.
NOTES: dict[str, dict[str, Any]] = {
    "classifier": {"id2label": {"0": "NO", "1": "YES"}, "num_labels": 2, "problem_type": "single_label_classification"},
    "qwen2.5": {"use_mrope": False, "max_window_layers": 21, "use_sliding_window": False},
    "a converter": {"rope_scaling": {}, "pruned_heads": {}},
    "dropouts": {"hidden_dropout": 0.0, "embd_pdrop": 0.1, "resid_pdrop": 0.1, "classifier_dropout": 0.1},
    "tools": {
        "_attn_implementation_autoset": True,
        "_model_name_or_path": "Smollm2 135M",
        "_internal": [1],
        "unsloth_version": "2025.3",
        "quantization_config": None,
        "auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]},
        "gradient_checkpointing": True,
    },
    "multimodal leftovers": {"image_token_id": 151_655, "vision_start_token_id": 5, "image_token_index": 6},
    "of no tokens": {"num_experts": 0, "moe_layers": [], "logit_scale": None, "use_qk_norm": False},
}
UNKNOWN: dict[str, Any] = {
    **{"trained_by": "x", "max_sequence_length": 2048, "tags": ["a", "b"], "training_args": {"lr": 1e-5, "epochs": 3}},
    **{"use_flash_attn": True, "seq_length": 4096, "tokenizer_padding_side": "right", "train_epochs": 3},
    **{"base_model_name": "x/y", "padded_vocab_size": 151_936, "attn_implementation_internal": "sdpa"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_notes_change_nothing_and_say_nothing(family: str, caplog: pytest.LogCaptureFixture) -> None:
    bare = BARE | {"model_type": family}
    for name, notes in NOTES.items():
        assert decoder_config(bare | notes, name) == decoder_config(bare, "bare"), name
    assert caplog.records == []


def test_a_window_that_is_turned_off_is_a_note() -> None:
    """As in a Qwen that became a Llama."""
    for off in ({"use_sliding_window": False, "sliding_window": 32_768}, {"sliding_window": None}):
        assert decoder_config(BARE | off, "off") == decoder_config(BARE, "bare")
    with pytest.raises(InputError, match="^f: sliding_window=4096 is not supported for llama"):
        decoder_config(BARE | {"sliding_window": 4096}, "f")


def test_unknown_notes_are_named_in_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert decoder_config(BARE | UNKNOWN, "many") == decoder_config(BARE, "bare")
    [record] = caplog.records
    assert record.message.startswith("many: trained_by='x', max_sequence_length=2048, tags=['a', 'b'], training_args=")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("logit_scale", 0.5), ("embedding_multiplier", 12), ("residual_multiplier", 0.22), ("clip_qkv", 8)),
        *(("attention_multiplier", 0.0078), ("use_qk_norm", True), ("num_experts", 8), ("no_rope_layers", [1, 0])),
        *(("no_rope_layer_interval", 4), ("pruned_heads", {"0": [1]}), ("is_encoder_decoder", True), ("mup_width", 2)),
        *(("quantization_config", {"quant_method": "gptq"}), ("per_layer_config", {"0": {"num_attention_heads": 1}})),
        *(("position_embedding_type", "alibi"), ("norm_type", "layernorm"), ("add_cross_attention", True)),
        *(("rope_ratio", 4), ("sliding_window_size", 7), ("scale_emb", 12), ("dim_model_base", 256), ("x", math.nan)),
        *(("tie_word_embedding_scale", 2.0), ("parallel_attn", True), ("nope_layer_interval", 4), ("use_mrope", True)),
    ],
)
def test_an_unknown_field_that_could_change_a_logit_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^f: {name}=.* is not supported for llama; if the model is the same witho"):
        decoder_config(BARE | {name: value}, "f")


@pytest.mark.parametrize(
    "notes",
    [
        *(
            {"group_size_ratio": 0.25},
            {"value_head_prefix": "score"},
            {"normalize_reward": True, "mean": 0.3, "std": 2.0},
        ),
        *({"reward_model": True}, {"freeze_layers": [0, 1]}, {"summary_use_proj": True, "summary_type": "cls_index"}),
        *({"debug": True}, {"pad_to_multiple_of": 64}, {"seqlen": 4096}, {"ds_config": {"zero": {"stage": 3}}}),
        *({"onnx": {"opset": 17}}, {"generation_config": {"top_k": 5}}, {"is_matryoshka": True}, {"normalize": True}),
        *({"model_parallel": True}, {"tensor_parallel": 2}, {"tensor_parallel_size": 8}, {"torch_compile": True}),
        *({"embedding_multiplier": 1.0, "residual_multiplier": 1}, {"logits_scaling": 1.0}, {"scale_emb": 1}),
        *({"mlp_multipliers": [1.0, 1]}, {"logit_scale": 1.0}, {"original_max_position_embeddings": 512}),
        *({"rotary_dim": 8, "kv_channels": 8}, {"n_embd": 48, "d_model": 48, "embedding_size": 48}, {"n_head": 6}),
        *({"n_layer": 3, "num_layers": 3}, {"layer_norm_eps": 1e-6}, {"num_kv_heads": 2}, {"n_inner": 72}),
        *({"rotary_base": 10_000, "rotary_pct": 1.0}, {"activation_function": "silu"}, {"use_fused_rms_norm": True}),
    ],
)
def test_notes_that_no_family_reads_change_nothing(notes: dict[str, Any]) -> None:
    assert decoder_config(BARE | notes, "noted") == decoder_config(BARE, "bare")


@pytest.mark.parametrize(
    "change",
    [
        *({"n_embd": 64}, {"rotary_dim": 4}, {"n_layer": 4}, {"n_head": 8}, {"layer_norm_eps": 1e-5}),
        *({"rotary_base": 5e5}, {"activation_function": "gelu"}, {"num_kv_heads": 6}),
        # 1 is not "off" for these: one replaces the root of the head size, one is divided by the root of the depth.
        *({"attention_multiplier": 1.0}, {"softmax_scale": 1.0}, {"scale_depth": 1}, {"mlp_multipliers": [1.0, 2.0]}),
        *({"flash_window": 128}, {"use_fused_alibi": True}, {"flash_attn_window_size": [128, 0]}),
        *({"scale_by_token_ids": True}, {"parallel_attn": True}, {"use_parallel_residual": True}),
        {"fused_scale": "by layer"},
    ],
)
def test_what_disagrees_or_could_be_mathematics_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^f: {next(iter(change))}=.* is not supported for llama"):
        decoder_config(BARE | change, "f")


def test_the_class_of_a_wrapper_is_read(tmp_path: Path) -> None:
    """FSDP2's trainers write its own class's name; a list may hold other classes."""
    for family, other in FAMILIES.items():
        wrapped = BARE | {"model_type": family, "architectures": [f"FSDP{other.causal_lm}"]}
        assert decoder_config(wrapped, "f") == decoder_config(BARE | {"model_type": family}, "f")
        assert causal_config(wrapped)["architectures"] == [other.causal_lm]
        decoder_config(wrapped | {"architectures": [other.classifier, other.causal_lm]}, "f")
        for named in ([other.classifier], [f"FSDP{other.classifier}"], [f"Peft{other.causal_lm}"], [1], [["x"]], "x"):
            with pytest.raises(InputError, match="^f: architectures=.* is not supported; only"):
                decoder_config(wrapped | {"architectures": named}, "f")


# What other files write, and transformers reads: its own configuration, and what of it the decoder must have.
AS_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "no window": ("qwen2", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 1}),
    "no window in Qwen3": ("qwen3", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 1}),
    "an activation that Gemma does not read": ("gemma2", {"hidden_act": "gelu"}),
    "and Gemma 3 neither": ("gemma3_text", {"hidden_act": "gelu"}),
    "a factor of no scaling": ("llama", {"rope_scaling": {"rope_type": "default", "factor": 2.0}}),
    "keys of another rope": (
        "llama",
        {"rope_scaling": LLAMA3 | {"mscale": 2.0, "beta_fast": 32, "attention_factor": 2}},
    ),
    "keys of YaRN": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mscale_all_dim": 3.0}}),
    "llama3 without its length": (
        "llama",
        {
            "rope_scaling": {name: LLAMA3[name] for name in LLAMA3 if not name.startswith("original")},
            "max_position_embeddings": 64,
        },
    ),
    "its length beside it": (
        "llama",
        {
            "rope_scaling": {name: LLAMA3[name] for name in LLAMA3 if not name.startswith("original")},
            "original_max_position_embeddings": 32,
        },
    ),
    "its length twice": ("llama", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 64}),
}


@pytest.mark.parametrize("name", AS_TRANSFORMERS)
def test_a_file_means_what_transformers_takes_it_to_mean(name: str) -> None:
    """The frequencies are those of its model, and the activation and the windows those of its configuration."""
    family, change = AS_TRANSFORMERS[name]
    written = json.loads(json.dumps(BARE | {"model_type": family} | change))
    ours = decoder_config(written, "f")
    config = AutoConfig.for_model(**written)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.config.to_dict() == config.to_dict()
    types = getattr(config, "layer_types", None) or ["full_attention"] * 3
    assert ours.sliding == (
        tuple(kind == "sliding_attention" for kind in types) if "sliding_attention" in types else ()
    )
    assert ours.activation == ("gelu_tanh" if family.startswith("gemma") else "silu")
    if family == "llama":
        theirs = AutoModel.from_config(config).rotary_emb.inv_freq.numpy()
        np.testing.assert_allclose(rotary_frequencies(ours.rope, ours.head_size), theirs, rtol=1e-6)


def test_what_transformers_does_not_read_of_a_rope_is_named(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        decoder_config(BARE | {"rope_scaling": LLAMA3 | {"mscale": 2.0}}, "left over")
    assert caplog.messages == [
        "left over: rope_parameters.mscale=2.0 is not read with rope_type='llama3', as in transformers"
    ]


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (
            "llama",
            {"rope_scaling": LLAMA3, "original_max_position_embeddings": 32},
            "original_max_position_embeddings=32 is not rope_parameters.original_max_position_embeddings=64",
        ),
        (
            "qwen2",
            {"layer_types": ["sliding_attention"] * 3, "use_sliding_window": False},
            "layer_types names sliding_attention, and use_sliding_window=False; they disagree",
        ),
        ("llama", {"rope_scaling": {"rope_type": "default", "ratio": 2}}, "rope_parameters.ratio=2 is not supported"),
        ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation='gelu' is not supported"),
    ],
)
def test_fields_that_disagree_are_refused(family: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^f: {re.escape(message)}"):
        decoder_config(BARE | {"model_type": family} | change, "f")


def test_a_base_model_is_read_where_it_is_tied() -> None:
    """As sentence-transformers saves an embedding model; transformers reads the language model of it."""
    for family, other in FAMILIES.items():
        written = {"model_type": family, "architectures": [other.base], "tie_word_embeddings": True}
        bare: dict[str, Any] = BARE | written
        assert decoder_config(bare, "f").tied
        assert AutoModel.from_config(AutoConfig.for_model(**bare)).__class__.__name__ == other.base
        with pytest.raises(InputError, match=rf"^f: architectures=\['{other.base}'\] is not supported; only"):
            decoder_config(bare | {"tie_word_embeddings": False}, "f")


def test_old_spellings_of_two_rope_bases() -> None:
    """`google/gemma-3-1b-it` as it lies on the hub: the fields that transformers 4 wrote."""
    old = json.loads(
        """{"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262144}"""
    )
    config = decoder_config(old, "old")
    assert config.rope == Rope(1_000_000.0)
    assert config.sliding_rope == Rope(10_000.0)
    assert config.sliding == (True, True, True, True, True, False) * 4 + (True, True)
    assert config.window == 512
    assert config.query_scale == 1 / 16
    assert config.tied
    assert config == decoder_config(AutoConfig.for_model(**old).to_dict(), "new")
    scaled = decoder_config(old | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "4b")
    assert (scaled.rope, scaled.sliding_rope) == (Rope(1_000_000.0, 8.0), Rope(10_000.0))
