"""From a Hugging Face `config.json` to a DecoderConfig: five families, one decoder.

A field that is left out means what Hugging Face takes it to mean, which differs by family. A field that is read here
and asks for mathematics that the decoder does not have is refused by name; `config_fields.py` judges the others.
"""

import logging
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

from prorank_jax.errors import InputError
from prorank_jax.model.attention import Rope
from prorank_jax.model.config_fields import check_unread, short
from prorank_jax.model.decoder import DecoderConfig

_LARGEST = float(np.finfo(np.float32).max)


class Family(NamedTuple):
    """What a `model_type` stands for in Hugging Face's library."""

    causal_lm: str
    """The architecture of its causal language model, which we read."""
    base: str
    """The same without unembedding, which we read where the embedding is the unembedding."""
    classifier: str
    """The architecture of its sequence classifier, which we can write."""
    defaults: Mapping[str, Any]
    """What the fields mean that a file may leave out; these and `_SIZES` are the fields of the family."""


_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_COMMON = {
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "is_causal": True,
    "head_dim": None,
    "layer_types": None,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 1.0,
    "original_max_position_embeddings": None,
}
_QWEN = {
    **_COMMON,
    "hidden_act": "silu",
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_GEMMA = {
    **_COMMON,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "use_bidirectional_attention": False,
}

FAMILIES = {
    "qwen2": Family(
        "Qwen2ForCausalLM", "Qwen2Model", "Qwen2ForSequenceClassification", {**_QWEN, "attention_bias": True}
    ),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Model", "Qwen3ForSequenceClassification", {**_QWEN, "head_dim": 128}),
    "llama": Family(
        "LlamaForCausalLM",
        "LlamaModel",
        "LlamaForSequenceClassification",
        {
            **_COMMON,
            "hidden_act": "silu",
            "num_key_value_heads": None,
            "max_position_embeddings": 2048,
            "mlp_bias": False,
            "rope_interleaved": False,
        },
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2Model",
        "Gemma2ForSequenceClassification",
        {
            **_GEMMA,
            "max_position_embeddings": 8192,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextModel",
        "Gemma3TextForSequenceClassification",
        {
            **_GEMMA,
            "max_position_embeddings": 131_072,
            # Hugging Face's Gemma 3 reads this field and caps nothing; so it is not one that we can honour.
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "sliding_window_pattern": 6,
            "_sliding_window_pattern": 6,
        },
    ),
}

# Each costs memory before the weights are looked at.
_MOST_LAYERS = 10_000
_ACTIVATIONS: dict[Any, Literal["silu", "gelu_tanh"]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_OTHER_ROPES = {
    *("factor", "low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim", "attention_factor", "beta_fast"),
    *("beta_slow", "short_factor", "long_factor", "truncate"),
}
"""What some types read, of which transformers reads nothing with the others."""
_log = logging.getLogger(__name__)


def decoder_config(config: Mapping[str, Any], place: str) -> DecoderConfig:
    """Reads the fields of `config.json`; `place` names the file in messages.

    Raises:
      InputError: the family is not supported, a field is missing, or a field asks for other mathematics.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise InputError(
            f"{place}: model_type={short(name)} is not supported; use a model of one of: {', '.join(FAMILIES)}"
        )
    family = FAMILIES[name]
    fields = _Fields(config, family, place)
    _refuse(fields, family)
    gemma = name.startswith("gemma")
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    kv_heads = heads if fields["num_key_value_heads"] is None else fields.size("num_key_value_heads")
    head_size = width // heads if fields["head_dim"] is None else fields.size("head_dim")
    if heads % kv_heads:
        raise InputError(
            f"{place}: num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}; "
            "the file does not describe a model"
        )
    if head_size < 2 or head_size % 2:
        raise InputError(f"{place}: head_dim={head_size}: rotary embedding needs an even head size; mend the file")
    layers = fields.size("num_hidden_layers")
    if layers > _MOST_LAYERS:
        raise InputError(
            f"{place}: num_hidden_layers={layers}: no model has more than {_MOST_LAYERS} layers; mend the file"
        )
    sliding = _sliding_layers(fields, name, layers)
    rope, sliding_rope = _ropes(fields, nested=name == "gemma3_text")
    read = {field: fields[field] for field in (*_SIZES, *family.defaults)}
    read |= {"num_key_value_heads": kv_heads, "head_dim": head_size, "rope_theta": rope.theta}
    check_unread(config, read | dict.fromkeys(("architectures", "auto_map")), place)
    return DecoderConfig(
        vocabulary=fields.size("vocab_size"),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        mlp_width=fields.size("intermediate_size"),
        rope=rope,
        norm_epsilon=fields.number("rms_norm_eps"),
        query_scale=(fields.number("query_pre_attn_scalar") if gemma else head_size) ** -0.5,
        tied=fields.flag("tie_word_embeddings"),
        qkv_bias=name == "qwen2",
        qk_norm=name in ("qwen3", "gemma3_text"),
        centred_norms=gemma,
        post_norms=gemma,
        activation=fields.activation(),
        embedding_scale=math.sqrt(width) if gemma else 1.0,
        attention_cap=fields.cap("attn_logit_softcapping") if name == "gemma2" else None,
        logit_cap=fields.cap("final_logit_softcapping") if gemma else None,
        sliding=sliding if any(sliding) else (),
        window=fields.size("sliding_window") if any(sliding) else 0,
        sliding_rope=sliding_rope,
        max_positions=fields.size("max_position_embeddings"),
    )


class _Fields:
    """The fields of a file, with its family's defaults for those that it leaves out."""

    def __init__(self, config: Mapping[str, Any], family: Family, place: str):
        self.config, self.family, self.place = config, family, place

    def __getitem__(self, name: str) -> Any:
        if name in self.config:
            return self.config[name]
        if name not in self.family.defaults:
            raise InputError(f"{self.place}: field {name!r} is missing; this is not a complete model folder")
        return self.family.defaults[name]

    def number(self, name: str) -> float:
        """A number above 0."""
        return _positive(self[name], name, self.place)

    def size(self, name: str) -> int:
        """A whole number above 0."""
        value = self.number(name)
        if value != int(value):
            raise InputError(f"{self.place}: {name}={self[name]!r} is not a whole number; mend the file")
        return int(value)

    def cap(self, name: str) -> float | None:
        return None if self[name] is None else self.number(name)

    def flag(self, name: str) -> bool:
        if not isinstance(self[name], bool):
            raise InputError(f"{self.place}: {name}={short(self[name])} is neither true nor false; mend the file")
        return bool(self[name])

    def activation(self) -> Literal["silu", "gelu_tanh"]:
        """Gemma has a field of its own, and reads nothing of the one that its older files have next to it."""
        own = "hidden_activation" in self.family.defaults and self["hidden_activation"] is not None
        name = "hidden_activation" if own else "hidden_act"
        value = self[name]
        if not isinstance(value, str) or value not in _ACTIVATIONS:
            raise InputError(
                f"{self.place}: {name}={short(value)} is not supported; only {', '.join(_ACTIVATIONS)} are"
            )
        return _ACTIVATIONS[value]


def _positive(value: Any, name: str, place: str) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= _LARGEST:
        raise InputError(f"{place}: {name}={short(value)} is not a 32-bit number above 0; mend the file")
    return float(value)


def _refuse(fields: _Fields, family: Family) -> None:
    """Refuses what asks for other mathematics."""
    config, place, model_type = fields.config, fields.place, fields.config["model_type"]
    architectures = config.get("architectures")
    listed = architectures if isinstance(architectures, list) else [architectures]
    # FSDP2 makes a class of its own of the model's, and trainers write its name.
    named = [name.removeprefix("FSDP") for name in listed if isinstance(name, str)]
    tied_base = family.base in named and fields.flag("tie_word_embeddings")
    if architectures and family.causal_lm not in named and not tied_base:
        raise InputError(
            f"{place}: architectures={short(architectures)} is not supported; only {[family.causal_lm]} is: "
            "use the folder of the language model itself"
        )
    code = config.get("auto_map")
    # Code of a tokenizer or a configuration changes no logit, and is not run either.
    if code and not (isinstance(code, dict) and not any("Model" in name for name in code)):
        raise InputError(
            f"{place}: auto_map={short(code)} asks for code of the folder's own, which is never run; "
            "use a model without"
        )
    for name in ("attention_bias", "is_causal", "mlp_bias", "rope_interleaved", "use_bidirectional_attention"):
        if name in family.defaults and fields[name] not in (None, family.defaults[name]):
            supported = family.defaults[name]
            raise InputError(
                f"{place}: {name}={short(fields[name])} is not supported for {model_type}; only {supported!r} is"
            )
    if model_type == "gemma3_text" and fields["attn_logit_softcapping"] is not None:
        value = fields["attn_logit_softcapping"]
        raise InputError(
            f"{place}: attn_logit_softcapping={short(value)} is not supported for gemma3_text; only None is"
        )


def _sliding_layers(fields: _Fields, model_type: str, layers: int) -> tuple[bool, ...]:
    kinds = {"full_attention": False, "sliding_attention": True}
    types = fields["layer_types"]
    if types is not None:
        named = types if isinstance(types, list) else [types]
        if unknown := [kind for kind in named if not isinstance(kind, str) or kind not in kinds]:
            raise InputError(
                f"{fields.place}: layer_types names {short(unknown[0])}, which is not supported; "
                f"only {', '.join(kinds)} are"
            )
        if len(named) != layers:
            raise InputError(
                f"{fields.place}: layer_types has {len(named)} entries and num_hidden_layers={layers}; mend the file"
            )
        sliding = tuple(kinds[kind] for kind in named)
        switched = "use_sliding_window" in fields.family.defaults
        if switched and any(sliding) and not fields.flag("use_sliding_window"):
            raise InputError(
                f"{fields.place}: layer_types names sliding_attention, and use_sliding_window=False; they disagree"
            )
        return sliding
    if model_type == "gemma2":
        return tuple(layer % 2 == 0 for layer in range(layers))
    if model_type == "gemma3_text":
        written = [name for name in ("sliding_window_pattern", "_sliding_window_pattern") if name in fields.config]
        pattern = fields.size(written[0] if written else "sliding_window_pattern")
        return tuple((layer + 1) % pattern != 0 for layer in range(layers))
    if "use_sliding_window" in fields.family.defaults and fields.flag("use_sliding_window"):
        if fields["sliding_window"] is None:
            return (False,) * layers
        full = fields["max_window_layers"]
        if isinstance(full, bool) or not isinstance(full, int):
            raise InputError(f"{fields.place}: max_window_layers={short(full)} is not a whole number; mend the file")
        return tuple(layer >= full for layer in range(layers))
    return (False,) * layers


def _ropes(fields: _Fields, nested: bool) -> tuple[Rope, Rope]:
    """The rotary embedding of full layers and of sliding ones; only `nested` families have two.

    transformers 5 writes `rope_parameters`; earlier versions wrote `rope_scaling` beside `rope_theta`.
    """
    written = fields["rope_scaling"] or fields["rope_parameters"] or {}
    if not isinstance(written, dict):
        raise InputError(f"{fields.place}: rope_parameters={short(written)} is not a mapping; mend the file")
    theta = fields.number("rope_theta")
    if not nested:
        rope = _rope(fields, written, theta)
        return rope, rope
    local = fields.number("rope_local_base_freq")
    if fields["rope_scaling"]:  # it scales the full layers
        return _rope(fields, written, theta), Rope(local)
    full, near = (_nested(fields, written, kind) for kind in ("full_attention", "sliding_attention"))
    return _rope(fields, full, theta), _rope(fields, near, local)


def _nested(fields: _Fields, written: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    of_kind = written.get(kind) or {}
    if not isinstance(of_kind, dict):
        raise InputError(f"{fields.place}: rope_parameters.{kind}={short(of_kind)} is not a mapping; mend the file")
    return of_kind


def _rope(fields: _Fields, written: Mapping[str, Any], theta: float) -> Rope:
    place, kind = fields.place, written.get("rope_type", written.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE_TYPES:
        raise InputError(
            f"{place}: rope_parameters.rope_type={short(kind)} is not supported; only {', '.join(_ROPE_TYPES)} are"
        )
    # Only some types read what the model was first made for.
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}
    known |= set(_ROPE_TYPES[kind])
    for name, value in written.items():
        if name in _OTHER_ROPES - known and value not in (None, 1.0):
            _warn_unread(place, f"rope_parameters.{name}={short(value)} is not read with rope_type={kind!r}")
        elif name not in known | _OTHER_ROPES and value is not None:
            raise InputError(
                f"{place}: rope_parameters.{name}={short(value)} is not supported with rope_type={kind!r}; "
                "use a model without it"
            )
    for partial in (fields["partial_rotary_factor"], written.get("partial_rotary_factor")):
        if partial not in (None, 1.0):
            raise InputError(f"{place}: partial_rotary_factor={short(partial)} is not supported; only 1.0 is")
    if missing := [name for name in _ROPE_TYPES[kind] if written.get(name) is None]:
        raise InputError(f"{place}: rope_parameters.{missing[0]} is missing; rope_type={kind!r} needs it")

    def number(name: str) -> float:
        return _positive(written[name], f"rope_parameters.{name}", place)

    if written.get("rope_theta") is not None:
        theta = number("rope_theta")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, number("factor"))
    low, high = number("low_freq_factor"), number("high_freq_factor")
    if high <= low:
        raise InputError(
            f"{place}: rope_parameters.high_freq_factor={high} is not above low_freq_factor={low}; mend it"
        )
    return Rope(theta, number("factor"), (low, high, _original_length(fields, written)))


def _original_length(fields: _Fields, written: Mapping[str, Any]) -> float:
    """The positions that a model was first made for: in its rope's fields, next to them, or those that it has now."""
    name, place = "original_max_position_embeddings", fields.place
    inside, outside = written.get(name), fields[name]
    if inside is not None and outside not in (None, inside):
        raise InputError(
            f"{place}: {name}={short(outside)} is not rope_parameters.{name}={short(inside)}; take the wrong one out"
        )
    if inside is not None:
        return _positive(inside, f"rope_parameters.{name}", place)
    return fields.number(name if outside is not None else "max_position_embeddings")


@cache
def _warn_unread(place: str, what: str) -> None:
    # The file is read by every part that needs the shapes.
    _log.warning("%s: %s, as in transformers", place, what)
