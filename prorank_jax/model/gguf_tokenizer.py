"""The tokenizer that a GGUF file describes, as a fast tokenizer of transformers.

transformers turns vocabulary, merges and token types into a tokenizer; what it leaves to the model's class (the token
before every text, the names of special tokens, the chat template) is added here. None of it needs torch.
"""

from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.processors import Sequence, TemplateProcessing

from prorank_jax.errors import InputError
from prorank_jax.model.gguf import GgufFile

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FIELDS = {
    "tokenizer_type": "ggml.model",
    "pre_tokenizer_type": "ggml.pre",
    "tokens": "ggml.tokens",
    "scores": "ggml.scores",
    "token_type": "ggml.token_type",
    "merges": "ggml.merges",
    "add_prefix_space": "ggml.add_space_prefix",
}
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def read_tokenizer(source: GgufFile) -> "PreTrainedTokenizerFast":
    """The tokenizer with its special tokens and chat template.

    Raises:
      InputError: the file holds no tokenizer, or one of a kind that is not known.
    """
    from transformers import PreTrainedTokenizerFast

    fields = {name: source.get(f"tokenizer.{key}") for name, key in _FIELDS.items()}
    tokens = fields["tokens"]
    if not tokens or not fields["tokenizer_type"]:
        raise InputError(
            f"{source.path}: tokenizer.ggml.tokens is missing, so the file holds no tokenizer; use one that does"
        )
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer
    except ImportError:
        raise InputError(
            f"{source.path}: reading its tokenizer needs transformers 5.24 or later; pip install 'transformers>=5.24'"
        ) from None
    try:
        backend, _ = convert_gguf_tokenizer(
            source.name, {key: value for key, value in fields.items() if value is not None}
        )
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{source.path}: tokenizer.ggml.model={fields['tokenizer_type']!r}: no tokenizer can be made of it "
            f"({reason}); use another file"
        ) from None
    special = {name: _token(source, tokens, key) for name, key in _SPECIAL.items()}
    _add_ends(backend, source, special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=source.get("tokenizer.chat_template"),
        **{name: token for name, token in special.items() if token is not None},
    )


def _token(source: GgufFile, tokens: list[str], key: str) -> str | None:
    number = source.get(f"tokenizer.ggml.{key}_token_id")
    if number is None:
        return None
    if not 0 <= number < len(tokens):
        raise InputError(
            f"{source.path}: tokenizer.ggml.{key}_token_id={number}: the vocabulary has {len(tokens)} tokens; the file "
            "is damaged"
        )
    return tokens[number]


def _add_ends(backend: Tokenizer, source: GgufFile, special: dict[str, Any]) -> None:
    """Puts the first token before every text, and the last one after it, where the file says so."""
    # llama.cpp puts one before texts of a sentencepiece vocabulary that does not say otherwise.
    implied = source.get("tokenizer.ggml.model") == "llama"
    first = special["bos_token"] if source.get("tokenizer.ggml.add_bos_token", implied) else None
    last = special["eos_token"] if source.get("tokenizer.ggml.add_eos_token", False) else None
    ends = [token for token in (first, last) if token is not None]
    if not ends:
        return
    single = [*([first] if first else []), "$A", *([last] if last else [])]
    pair = [*single, *([first] if first else []), "$B:1", *([last] if last else [])]
    template = TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(ends)]
    )
    backend.post_processor = Sequence([backend.post_processor, template]) if backend.post_processor else template
