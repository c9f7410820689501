"""From a Hugging Face `config.json` to a DecoderConfig, refusing by name what would change the mathematics."""

from collections.abc import Mapping
from typing import Any

from prorank_jax.errors import InputError
from prorank_jax.model.decoder import DecoderConfig

SUPPORTED = ("qwen2", "llama")


def decoder_config(config: Mapping[str, Any], place: str) -> DecoderConfig:
    """Reads the fields of `config.json`; `place` names the file in messages.

    Raises:
      InputError: the family is not supported, a field is missing, or a field asks for other mathematics.
    """
    family = config.get("model_type")
    if family not in SUPPORTED:
        raise InputError(
            f"{place}: model_type={family!r} is not supported; use a model of one of: {', '.join(SUPPORTED)}"
        )
    rope = _rope(config)
    refused = {
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "rope_scaling": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "use_sliding_window": (config.get("use_sliding_window", False), False),
        "attention_bias": (config.get("attention_bias", False), False),
        "mlp_bias": (config.get("mlp_bias", False), False),
    }
    for field, (value, supported) in refused.items():
        if value != supported:
            raise InputError(f"{place}: {field}={value!r} is not supported; only {supported!r} is")
    try:
        width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        decoder = DecoderConfig(
            vocabulary=int(config["vocab_size"]),
            width=width,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or width // heads),
            mlp_width=int(config["intermediate_size"]),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
            norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
            qkv_bias=family == "qwen2",
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise InputError(f"{place}: field {error} is missing; this is not a complete model folder") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}: a size is not a number ({error}); mend the file") from None
    if decoder.heads % decoder.kv_heads:
        raise InputError(
            f"{place}: num_attention_heads={decoder.heads} is not a multiple of "
            f"num_key_value_heads={decoder.kv_heads}; the file does not describe a model"
        )
    return decoder


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    # transformers 5 writes `rope_parameters`; earlier versions wrote `rope_scaling` beside `rope_theta`.
    return config.get("rope_parameters") or config.get("rope_scaling") or {}
