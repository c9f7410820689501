"""Tokenising what fills a slot of a prompt: text that can hold no control token, behind a newline."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from prorank_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Encode = Callable[[Sequence[str]], list[list[int]]]


def control_tokens(tokenizer: "PreTrainedTokenizerFast") -> dict[int, str]:
    """Id -> text of the added tokens that control something; whitespace and single characters control nothing."""
    return {
        id_: token.content
        for id_, token in tokenizer.added_tokens_decoder.items()
        if token.special or len(token.content.strip()) > 1
    }


def slot_tokenizer(tokenizer: "PreTrainedTokenizerFast", place: str) -> Tokenizer:
    """A copy of a tokenizer whose control tokens are ordinary text.

    `encode_special_tokens` of the tokenizers library would leave added tokens that are not marked
    as special (Qwen's <tool_call>) alive. So they leave the copy altogether: as added tokens, and
    as entries of the vocabulary that merges lead to (Gemma's <start_of_turn> is one).

    Raises:
      InputError: two tokens have one id; text would lose what a control token stands for; the model still makes a
        control token of ordinary text.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    _check_ids(backend, place)
    control = control_tokens(tokenizer)
    kept = [token for token in backend["added_tokens"] if token["id"] not in control]
    backend["truncation"] = backend["padding"] = None
    model = backend["model"]
    unknown = model.get("unk_token")
    if model["type"] == "BPE":
        pieces = {piece for piece, id_ in model["vocab"].items() if id_ in control}
        if pieces:
            # The model needs its unknown token for characters that it lacks; merges must not lead to it.
            gone = pieces - {unknown}
            model["vocab"] = {piece: id_ for piece, id_ in model["vocab"].items() if piece not in gone}
            model["merges"] = [pair for pair in model["merges"] if not pieces & {*pair, "".join(pair)}]
        # An added token that the vocabulary lacks is numbered anew when the copy is read.
        model["vocab"] |= {token["content"]: token["id"] for token in kept}
    backend["added_tokens"] = kept if model["type"] == "BPE" else []
    slots = Tokenizer.from_str(json.dumps(backend))
    for id_, ids in zip(control, encode_slots(slots, list(control.values())), strict=True):
        if not ids and control[id_].strip():
            raise InputError(
                f"{place}: the control token {control[id_]!r} is ordinary text to the tokenizer, which a query or a "
                "document would lose; take it out of the added tokens"
            )
        if id_ in ids and control[id_] != unknown:
            raise InputError(
                f"{place}: {type(tokenizer).__name__} makes its control token {control[id_]!r} of ordinary "
                "text, so that a document could forge a prompt; use a model with a BPE tokenizer"
            )
    return slots


def _check_ids(backend: dict[str, Any], place: str) -> None:
    """Refuses a tokenizer in which two tokens have one id: one of them would be taken for the other."""
    vocabulary = backend["model"].get("vocab", {})
    # Unigram models number their list.
    named = (
        vocabulary.items() if isinstance(vocabulary, dict) else ((row[0], id_) for id_, row in enumerate(vocabulary))
    )
    known: dict[int, str] = {}
    added = ((token["content"], token["id"]) for token in backend["added_tokens"])
    for content, id_ in (*named, *added):
        if known.setdefault(id_, content) != content:
            raise InputError(
                f"{place}: the tokens {known[id_]!r} and {content!r} are both number {id_}; the tokenizer is damaged, "
                "download it again"
            )


def encode_slots(slots: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text in its slot, in one call of the backend."""

    def encode(batch: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in slots.encode_batch_fast(list(batch), add_special_tokens=False)]

    return behind_newline(encode, texts)


def behind_newline(encode: Encode, texts: Sequence[str]) -> list[list[int]]:
    """The ids of texts that stand behind a newline.

    SentencePiece tokenizers put a space before a string; behind a newline they do not. Where the
    newline does not stay a token of its own, a text is tokenised alone.
    """
    newline, *behind = encode(["\n", *("\n" + text for text in texts)])
    found = [ids[len(newline) :] for ids in behind]
    glued = [index for index, ids in enumerate(behind) if ids[: len(newline)] != newline]
    for index, ids in zip(glued, encode([texts[index] for index in glued]), strict=True):
        found[index] = ids
    return found
