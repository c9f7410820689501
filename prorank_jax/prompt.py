"""A query and a document become token ids here, and nowhere else.

The prompt is a template (`templates.py`), cut once into pieces that never change (`pieces.py`). What is left to do for
each pair is to tokenise what fills the slots, to cut that to the length, and to join the ids.
"""

import dataclasses
import logging
import re
from array import array
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError
from tokenizers import Tokenizer

from prorank_jax.byte_order_mark import without_marks
from prorank_jax.config import PromptConfig
from prorank_jax.cross_encoder import read_answer_ids
from prorank_jax.errors import InputError
from prorank_jax.pieces import Pieces, Slot, cut_template, find_answer_ids
from prorank_jax.slots import control_tokens, encode_slots, slot_tokenizer
from prorank_jax.storage import fetched
from prorank_jax.templates import (
    DOCUMENT,
    INSTRUCTION,
    PAIR,
    QUERY,
    SYSTEM,
    Messages,
    adapt,
    answer_tail,
    chat_template,
    complete,
    is_pair_template,
    make_template,
    own_turn_end,
    render,
    template_ids,
    turn_end,
)
from prorank_jax.thinking import no_answer_place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from prorank_jax.model.hf import ModelFolder

_log = logging.getLogger(__name__)
ANSWERS = ("0", "1")
_CHARACTERS_A_TOKEN = 64
_UNSURE_TOKENS = 64
_SURROGATES = re.compile("[\ud800-\udfff]")


class PromptParts(NamedTuple):
    """The ids of a prompt: what it shares with all prompts of its query, and what it has of its own (never empty)."""

    shared: tuple[int, ...]
    own: list[int]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Fixed pieces of token ids, two slots between them, and the tokens of the answers.

    Equal prompts give equal ids: the tokenizers themselves are left out of the comparison.
    `dataclasses.replace(prompt, max_length=...)` gives the same prompt for another length.

    Raises:
      InputError: `max_length` leaves less than one token for the query and one for the document.
    """

    tokenizer: "PreTrainedTokenizerFast" = dataclasses.field(compare=False, repr=False)
    template: str
    """Jinja text, the `chat_template.jinja` of an exported folder."""
    max_length: int
    """Tokens of a whole prompt at most."""
    answers: tuple[str, str]
    """The answers for "not relevant" and "relevant"."""
    answer_ids: tuple[int, int]
    end_id: int
    """The token that ends the assistant's turn."""
    pad_id: int
    pieces: Pieces
    slots: Tokenizer = dataclasses.field(compare=False, repr=False)
    """The tokenizer without control tokens, for what fills the slots."""
    place: str = dataclasses.field(compare=False)
    """Where the prompt comes from, for messages."""

    def __post_init__(self) -> None:
        if self.room < 2:
            raise InputError(
                f"{self.place}: prompt.max_length={self.max_length}: the template takes {self.pieces.length} "
                "tokens, which leaves no room for a query and a document; "
                f"raise prompt.max_length to {self.pieces.length + 2} or more"
            )

    @property
    def room(self) -> int:
        """Tokens left for the query and the document."""
        return self.max_length - self.pieces.length

    def encode(self, query: str, document: str) -> list[int]:
        """The ids of one prompt, at most `max_length`; see `encode_batch`."""
        return self.encode_batch([(query, document)])[0]

    def encode_batch(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """The ids of a prompt for each pair (query, document), at most `max_length` of them; see `encode_parts`."""
        return [[*shared, *own] for shared, own in self.encode_parts(pairs)]

    def encode_parts(
        self, pairs: Sequence[tuple[str, str]], known: "KnownDocuments | None" = None
    ) -> list[PromptParts]:
        """The ids of a prompt for each pair (query, document), at most `max_length` of them.

        Texts are stripped of surrounding whitespace, and lone surrogates (which no tokenizer takes)
        become U+FFFD. A query is cut to three quarters of the room (after mxbai-rerank); then the
        document is cut to what is left. The template is never cut.

        Args:
          known: documents tokenised before by this prompt, which are not tokenised again; those of `pairs` are added.
        """
        pieces = self.pieces
        queries = self._filled((query for query, _ in pairs), pieces.query)
        texts = dict.fromkeys(document for _, document in pairs)
        if known is None:
            documents = self._filled(texts, pieces.document)
        else:
            documents = known.among(texts)
            new = self._filled((text for text in texts if text not in documents), pieces.document)
            known.add(new, self.max_length)
            documents |= new
        query_room = self.room * 3 // 4 + pieces.query.length
        queries = {query: _cut(ids, query_room, pieces.query.after_ids) for query, ids in queries.items()}
        rooms = {query: self.max_length - pieces.length_around_document(ids) for query, ids in queries.items()}
        parts = []
        for query, document in pairs:
            cut = _cut(documents[document], rooms[query], pieces.document.after_ids)
            shared, own = pieces.part(queries[query], cut)
            parts.append(PromptParts(tuple(shared), own))
        return parts

    def with_instruction(self, instruction: str) -> "Prompt":
        """This prompt with another task statement, in the place where the template prints the `system` message.

        The instruction is text like a query: what it says can't leave its place. An empty one changes nothing.

        Raises:
          InputError: the template has no place for it, or it leaves no room for a query and a document.
        """
        instruction = _clean(instruction)
        if not instruction:
            return self
        messages: Messages = [{"role": "system", "content": SYSTEM}, *PAIR]
        rendered = render(self.template, messages, self.tokenizer)
        if rendered.count(SYSTEM) != 1:
            raise InputError(
                f"{self.place}: instruction={instruction[:60]!r}: the template prints the `system` message "
                f"{rendered.count(SYSTEM)} times, not once; leave the instruction out"
            )
        pieces = cut_template(rendered, self.tokenizer, self.slots, instruction)
        return dataclasses.replace(self, pieces=pieces)

    def _filled(self, texts: Iterable[str], slot: Slot) -> dict[str, list[int]]:
        """Text -> the ids of its slot; a query of a hundred documents is tokenised once."""
        unique = list(dict.fromkeys(texts))
        filled = [slot.before + self._head(_clean(text)) + slot.after for text in unique]
        return dict(zip(unique, encode_slots(self.slots, filled), strict=True))

    def _head(self, text: str) -> str:
        """As much of a text as its first `max_length` tokens come from; tokenising megabytes to drop them takes
        seconds and gigabytes."""
        characters = _CHARACTERS_A_TOKEN * self.max_length
        while len(text) > characters:
            head = text[:characters]
            [ids] = encode_slots(self.slots, [head])
            # The last tokens may be others where the text goes on.
            if len(ids) >= self.max_length + _UNSURE_TOKENS:
                return head
            characters *= 4
        return text


class KnownDocuments:
    """The ids of the documents tokenised last: a first stage finds the same document for many queries.

    Args:
      tokens: ids kept at most, of 4 bytes each.
    """

    def __init__(self, tokens: int = 1 << 24) -> None:
        self._room = tokens
        self._ids: dict[str, array[int]] = {}

    def among(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """Those of the texts that are known, which become the last used."""
        found = {text: self._ids.pop(text) for text in texts if text in self._ids}
        self._ids |= found
        return {text: ids.tolist() for text, ids in found.items()}

    def add(self, documents: dict[str, list[int]], max_length: int) -> None:
        """Keeps documents, and forgets those that were not used for longest.

        What is longer than `max_length` is kept to one token more, so that it is still known to be too long.
        """
        for text, ids in documents.items():
            self._ids[text] = kept = array("i", ids[: max_length + 1])
            self._room -= len(kept)
        while self._room < 0 and self._ids:
            self._room += len(self._ids.pop(next(iter(self._ids))))


def _is_no_advice(record: logging.LogRecord) -> bool:
    """transformers says at import that it found no PyTorch, which is as it should be here."""
    return not record.getMessage().startswith("PyTorch was not found")


def load_tokenizer(folder_or_id: str | Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a model folder or a Hugging Face hub id; remote code is never run.

    Raises:
      InputError: there is none, or it is not a fast tokenizer (`tokenizer.json`).
    """
    logger = logging.getLogger("transformers")
    logger.addFilter(_is_no_advice)
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    finally:
        logger.removeFilter(_is_no_advice)
    folder = Path(folder_or_id)
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: has no tokenizer.json; copy the base model's tokenizer files into it")
    try:
        with without_marks(folder) if folder.is_dir() else nullcontext(folder_or_id) as source:
            tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
        tokenizer.name_or_path = str(folder_or_id)
    except Exception as error:  # the Rust parser raises Exception itself on a malformed tokenizer.json
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{folder_or_id}: no tokenizer could be loaded ({reason}); give a model folder or a hub id"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        kind = type(tokenizer).__name__
        raise InputError(f"{folder_or_id}: {kind} is not a fast tokenizer; convert it to a tokenizer.json")
    return tokenizer


def load_prompt(model: "ModelFolder", config: PromptConfig, place: str) -> Prompt:
    """The prompt of a model folder: a reranker's own template and answers, unless `config` names others.

    Args:
      place: the model folder, for messages.

    Raises:
      InputError: as `build_prompt`; a prompt that is longer than the model was made for, or needs tokens that it does
        not have.
    """
    limit = model.config.max_positions
    if config.max_length > limit:
        raise InputError(
            f"{place}: max_length={config.max_length}: the model was made for {limit} positions "
            f"(max_position_embeddings in config.json); use {limit} or less"
        )
    tokenizer = load_tokenizer(model.folder)
    answer_ids = read_answer_ids(model.folder) if config.answers is None else None
    prompt = build_prompt(tokenizer, config, place=place, answer_ids=answer_ids)
    pieces, tokens = prompt.pieces, model.config.vocabulary
    used = [*pieces.head_ids, *pieces.middle_ids, *pieces.tail_ids, *prompt.answer_ids, prompt.end_id, prompt.pad_id]
    if missing := [id_ for id_ in used if not 0 <= id_ < tokens]:
        raise InputError(
            f"{place}: the prompt needs token {missing[0]}, and the model has {tokens} tokens; "
            "tokenizer and model do not belong together"
        )
    # JAX would take the last row of the embedding for what it does not have.
    if (largest := max(prompt.slots.get_vocab().values())) >= tokens:
        raise InputError(
            f"{place}: text can become token {largest} ({prompt.slots.id_to_token(largest)!r}), and the model has "
            f"{tokens} tokens; tokenizer and model do not belong together"
        )
    return prompt


def build_prompt(
    tokenizer: "PreTrainedTokenizerFast",
    config: PromptConfig,
    *,
    place: str,
    answer_ids: tuple[int, int] | None = None,
) -> Prompt:
    """The prompt of a tokenizer: from `config.template`, else from the tokenizer's own template where
    that has the roles `query` and `document` (an exported folder), else made in its chat format.

    Args:
      place: the model folder, for messages.
      answer_ids: the tokens of the answers of a model that is a reranker already, which is used with its own template.
        Default: what `config.answers` become behind the prompt.

    Raises:
      InputError: the template is malformed or lacks a role, an answer is not one token behind it,
        or `max_length` leaves no room.
    """
    answers = config.answers or ANSWERS
    if answer_ids is not None:
        no, yes = (str(tokenizer.decode([id_])) for id_ in answer_ids)
        answers = no, yes
    source = f"{place}: chat template" if config.template is None else config.template
    try:
        chat = chat_template(tokenizer)
        if config.template is not None:
            template = _read(config.template)
        elif chat and is_pair_template(chat, tokenizer):
            template = chat
        elif answer_ids is not None:
            raise InputError(
                f"{source}: the model is a reranker, and its template does not print the messages of the roles `query` "
                "and `document`; name one in prompt.template, with the wording that it was trained on"
            )
        else:
            instruction = INSTRUCTION if config.instruction is None else config.instruction
            template = make_template(tokenizer, instruction, answers, config.order == "document_first")
        if template != chat:
            template = adapt(template, tokenizer)
        template = complete(template, tokenizer, config.instruction)
        rendered = render(template, PAIR, tokenizer)
    except TemplateSyntaxError as error:
        raise InputError(f"{source}:{error.lineno}: {error.message}; mend the Jinja template there") from None
    except TemplateError as error:
        raise InputError(f"{source}: it fails ({error}); let it print query and document") from None
    for role, sentinel in (("query", QUERY), ("document", DOCUMENT)):
        if rendered.count(sentinel) != 1:
            raise InputError(
                f"{source}: it prints the text of the {role} {rendered.count(sentinel)} times; "
                f"print the content of the message with the role {role} once, and as it is"
            )

    slots = slot_tokenizer(tokenizer, place)
    pieces = cut_template(rendered, tokenizer, slots)
    if config.order not in (None, "document_first" if pieces.document_first else "query_first"):
        raise InputError(
            f"{source}: it prints the {'document' if pieces.document_first else 'query'} first, and prompt.order is "
            f"{config.order}; leave prompt.order out, or change the template"
        )
    end_token = turn_end(template, PAIR, tokenizer) or own_turn_end(tokenizer)
    if end_token is None:
        raise InputError(f"{place}: no token ends the assistant's turn; set eos_token in tokenizer_config.json")
    if problem := no_answer_place(answer_tail(rendered), end_token, control_tokens(tokenizer).values()):
        _warn(source, problem)
    end_id = template_ids(tokenizer, end_token)[0]
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, end_id)
    return Prompt(
        tokenizer=tokenizer,
        template=template,
        max_length=config.max_length,
        answers=answers,
        answer_ids=answer_ids or find_answer_ids(rendered, tokenizer, answers, place),
        end_id=end_id,
        pad_id=next(pad for pad in pads if pad is not None),
        pieces=pieces,
        slots=slots,
        place=place,
    )


@cache
def _warn(source: str, problem: str) -> None:
    # A prompt is built by every part that needs its length.
    _log.warning("%s: %s", source, problem)


def _read(path: str) -> str:
    try:
        return Path(fetched(path)).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a file in prompt.template") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the template as UTF-8") from None


def _clean(text: str) -> str:
    return _SURROGATES.sub("\ufffd", text).strip()


def _cut(ids: list[int], room: int, end_ids: list[int]) -> list[int]:
    """Cuts a slot to `room` tokens, of which the last are the newlines behind it.

    >>> _cut([1, 2, 3, 4, 198], 3, [198])
    [1, 2, 198]
    """
    return ids if len(ids) <= room else ids[: room - len(end_ids)] + end_ids
