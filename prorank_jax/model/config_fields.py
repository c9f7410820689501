"""Fields of a `config.json` that no family reads: which of them could change a logit, by their names and values.

`transformers` keeps every field that it meets, so a file carries the settings of generation, of training and of the
tools that it went through. A field is off (null, false, zero, empty), or known to change no logit, or reads as a note:
text whose name has no word of the mathematics, or a value whose name has a word of bookkeeping; or it is another
name of a field that is read, and agrees with it; or a factor of 1. All else could ask for mathematics that the decoder
does not have.
"""

import logging
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from prorank_jax.errors import InputError

_log = logging.getLogger(__name__)

INERT = {
    # Of the base class of all configurations, in transformers 3 to 5.
    *("model_type", "transformers_version", "torch_dtype", "dtype", "name_or_path", "use_cache", "pretraining_tp"),
    *("attn_implementation", "return_dict", "output_attentions", "output_hidden_states", "tie_last_hidden_states"),
    *(
        "chunk_size_feed_forward",
        "n_positions",
        "torchscript",
        "use_bfloat16",
        "tf_legacy_loss",
        "gradient_checkpointing",
        "prefix",
    ),
    *("is_decoder", "tie_encoder_decoder", "keys_to_ignore_at_inference", "tokenizer_class", "return_unused_kwargs"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
    *("initializer_range", "neftune_noise_alpha", "use_reentrant_checkpointing", "cache_implementation"),
    # Of generation, which older versions kept in config.json.
    *("do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("num_beams", "num_beam_groups", "early_stopping", "length_penalty", "diversity_penalty", "penalty_alpha"),
    *("repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("max_length", "min_length", "max_new_tokens", "min_new_tokens", "max_time", "max_cache_len", "stop_strings"),
    *("num_return_sequences", "output_scores", "output_logits", "return_dict_in_generate", "remove_invalid_values"),
    *("bad_words_ids", "force_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "constraints"),
    *("exponential_decay_length_penalty", "renormalize_logits", "guidance_scale", "token_healing", "low_memory"),
    *("watermarking_config", "cache_config", "compile_config", "continuous_batching_config", "disable_compile"),
    *("dola_layers", "prefill_chunk_size", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind"),
    *("target_lookbehind", "prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type", "use_mtp"),
    # Notes that other tools leave.
    *("is_llama_config", "transformers.js_config", "unsloth_fixed", "unsloth_version", "model_name"),
    *("sentence_transformers", "classifier_from_token", "license", "generation_config", "debug", "seqlen", "onnx"),
    *("ds_config", "pad_to_multiple_of", "is_matryoshka", "normalize", "freeze_layers"),
    # Of training: the groups of shifted attention; a reward, which reads the hidden states, and its statistics.
    *("group_size_ratio", "reward_model", "normalize_reward", "value_head_prefix", "mean", "std"),
    *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
    # How many devices compute a product.
    *("model_parallel", "tensor_parallel", "tensor_parallel_size"),
    # Of layers that `use_sliding_window` turns on; where a family does not read that one, it is refused itself.
    "max_window_layers",
}
"""Fields that change no logit, whatever their value."""

ALIASES = {
    **dict.fromkeys(("n_embd", "d_model", "embedding_size", "embed_dim", "hidden_dim", "n_embed"), "hidden_size"),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers"), "num_hidden_layers"),
    **dict.fromkeys(("n_head", "n_heads", "num_heads"), "num_attention_heads"),
    **dict.fromkeys(("num_kv_heads", "n_kv_heads", "n_head_kv"), "num_key_value_heads"),
    **dict.fromkeys(("rotary_dim", "kv_channels", "attention_head_dim", "head_size"), "head_dim"),
    **dict.fromkeys(("n_inner", "ffn_hidden_size", "ffn_dim", "d_ff"), "intermediate_size"),
    **dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"), "rms_norm_eps"),
    **dict.fromkeys(("rotary_base", "rotary_emb_base", "rope_base"), "rope_theta"),
    **dict.fromkeys(("rotary_pct", "rotary_percent"), "partial_rotary_factor"),
    **dict.fromkeys(("activation_function", "hidden_activation"), "hidden_act"),
    "n_vocab": "vocab_size",
}
"""Other names of fields that are read, which must agree with these."""

# A model is evaluated, and trained here, without dropout.
_INERT_NAME = re.compile(r"^_|dropout|layerdrop|drop_path|_pdrop$")
# Ids of tokens choose what is read, not what it means.
_TOKEN_IDS = re.compile(r"(^|_)token_(id|ids|index)$")

_MATHEMATICS = re.compile(
    "(scal|multiplier|norm|rope|mrope|rotary|position|alibi|nope|attention|attn|expert|moe|rout|clip|softcap|sliding"
    "|window|bias|residual|embed|activation|layer|head|mup|logit|softmax|conv|ssm|mamba|causal|bidirectional|mlp|ffn"
    "|parallel|factor|quant|compress)|(act|cap|gate|kv|qk|qkv|q|k|v)$"
)
"""How a word of the mathematics begins, or all of it."""
_BOOKKEEPING = {
    *("name", "version", "author", "authors", "by", "license", "date", "time", "timestamp", "url", "path", "file"),
    *("revision", "commit", "hash", "tag", "tags", "language", "languages", "description", "comment", "note", "notes"),
    *("info", "metadata", "id", "ids", "library", "framework", "format", "tokenizer", "vocab", "padding", "device"),
    *("length", "len", "seq", "sequence", "context", "ctx", "template", "prompt", "label", "labels", "params"),
    *("train", "training", "trained", "trainer", "tuned", "finetune", "finetuned", "finetuning", "pretrain"),
    *("pretraining", "epoch", "epochs", "step", "steps", "batch", "seed", "lr", "learning", "loss", "gradient"),
    *("checkpoint", "optimizer", "decay", "warmup", "dataset", "datasets", "data", "eval", "evaluation", "metrics"),
    *("accuracy", "unsloth", "axolotl", "mlx", "lora", "peft", "trl"),
}
# How a product is computed, not which: a switch of a product that every decoder has, or its precision.
_IMPLEMENTATION = re.compile(r"(^|_)(flash|fused?|sdpa|liger|(\w+_)?implementation|kernels?|compile)(_|$)")
_PRECISION = re.compile(r"_in_fp32$|^upcast_|^(bf|fp)(16|32)$")
_NOT_EVERY_DECODER = re.compile(
    r"(^|_)(scal|multiplier|mrope|position|alibi|nope|expert|moe|rout|clip|softcap|sliding|window|bias|residual|mup|conv"
    "|ssm|mamba|causal|bidirectional|parallel|factor|quant|compress|cap(_|$)|gate(_|$)|logit)"
)
# A factor of 1 is none, unless it stands for another (the root of the head size) or is divided by one (of the depth).
_FACTOR = re.compile(r"(^|_)(scal(e|ing)|multipliers?)(_|$)")
_NO_PLAIN_FACTOR = re.compile("attention|attn|softmax|qk|query|depth|dim|width|layer")


def check_unread(config: Mapping[str, Any], read: Mapping[str, Any], place: str) -> None:
    """Refuses the fields beyond `read` that could change a logit; names those that nobody knows in one warning.

    Args:
      read: the fields that are read, and what they mean.

    Raises:
      InputError: a field could ask for other mathematics.
    """
    unknown = [
        name
        for name, value in config.items()
        if not (name in read or _is_inert(name) or _is_off(value) or _is_factor_of_one(name, value))
        and not (name in ALIASES and type(value) is not bool and value == read.get(ALIASES[name]))
    ]
    if config.get("use_sliding_window") is False and "sliding_window" in unknown:
        unknown.remove("sliding_window")
    for name in unknown:
        if not _is_note(name, config[name]):
            raise InputError(
                f"{place}: {name}={short(config[name])} is not supported for {config['model_type']}; "
                "if the model is the same without this field, take it out of a copy of the folder"
            )
    if unknown:
        _warn(place, ", ".join(f"{name}={short(config[name])}" for name in unknown))


def short(value: Any) -> str:
    """A value as messages show it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@cache
def _warn(place: str, named: str) -> None:
    # The file is read by every part that needs the shapes.
    _log.warning("%s: %s: unknown, and taken for notes of other tools that change no score", place, named)


def _is_off(value: Any) -> bool:
    # NaN is a number that is not zero.
    return value is None or value in (False, 0, "", [], {})


def _is_inert(name: str) -> bool:
    ids = _TOKEN_IDS.search(name) and not any(_MATHEMATICS.match(word) for word in _words(name))
    return name in INERT or bool(_INERT_NAME.search(name)) or bool(ids)


def _is_factor_of_one(name: str, value: Any) -> bool:
    factors = value if isinstance(value, list) else [value]
    plain = bool(_FACTOR.search(name)) and not _NO_PLAIN_FACTOR.search(name)
    return plain and all(type(factor) in (int, float) and factor == 1 for factor in factors)


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.split(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])", name)]


def _is_note(name: str, value: Any) -> bool:
    switch = isinstance(value, (bool, str)) and not _NOT_EVERY_DECODER.search(name)
    if _PRECISION.search(name) or (switch and _IMPLEMENTATION.search(name)):
        return True
    words = _words(name)
    bookkeeping = not _BOOKKEEPING.isdisjoint(words)
    mathematics = any(_MATHEMATICS.match(word) for word in words)
    if _is_text(value):
        return bookkeeping or not mathematics
    return bookkeeping and not mathematics


def _is_text(value: Any) -> bool:
    """Whether all that a value holds is text, or off."""
    if isinstance(value, Mapping):
        return all(_is_text(part) for part in value.values())
    if isinstance(value, list):
        return all(_is_text(part) for part in value)
    return isinstance(value, str) or _is_off(value)
