"""A query and a document become token ids here, and nowhere else.

A template (`templates.py`) is rendered once with sentinels and cut into fixed pieces,

    head | query slot | middle | document slot | tail

whose ids never change. What fills a slot is tokenised by a private copy of the tokenizer that knows
no control tokens, so nothing that a query or a document says can leave its slot. A slot takes the
newlines behind it with it, because byte-level tokenizers glue punctuation to a following newline
("?\\n" is one token of Qwen's): so the joined ids are those of the whole rendered string.
"""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError
from tokenizers import Tokenizer

from prorank_jax.config import PromptConfig
from prorank_jax.errors import InputError
from prorank_jax.slots import Encode, behind_newline, encode_slots, slot_tokenizer
from prorank_jax.templates import (
    DOCUMENT,
    INSTRUCTION,
    PAIR,
    QUERY,
    chat_template,
    complete,
    is_pair_template,
    make_template,
    own_turn_end,
    render,
    template_ids,
    turn_end,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SURROGATES = re.compile("[\ud800-\udfff]")


class Newlines(NamedTuple):
    """The newlines of the template right behind a slot, and their ids where they stand alone."""

    text: str
    ids: list[int]


class Emptied(NamedTuple):
    """The pieces where a slot is empty and its newlines meet those before it (":\\n\\n" is one token of Qwen's)."""

    first: list[int]
    """Head and middle."""
    second: list[int]
    """Middle and tail."""
    both: list[int]


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
    head_ids: list[int]
    middle_ids: list[int]
    tail_ids: list[int]
    emptied: Emptied
    query_end: Newlines
    document_end: Newlines
    document_first: bool
    slots: Tokenizer = dataclasses.field(compare=False, repr=False)
    """The tokenizer without control tokens, for what fills the slots."""
    place: str = dataclasses.field(compare=False)
    """Where the prompt comes from, for messages."""

    def __post_init__(self) -> None:
        if self.room < 2:
            raise InputError(
                f"{self.place}: prompt.max_length={self.max_length}: the template takes {self.template_length} "
                "tokens, which leaves no room for a query and a document; "
                f"raise prompt.max_length to {self.template_length + 2} or more"
            )

    @property
    def template_length(self) -> int:
        """Tokens of the template alone."""
        fixed = (self.head_ids, self.middle_ids, self.tail_ids, self.query_end.ids, self.document_end.ids)
        return sum(map(len, fixed))

    @property
    def room(self) -> int:
        """Tokens left for the query and the document."""
        return self.max_length - self.template_length

    def encode(self, query: str, document: str) -> list[int]:
        """The ids of one prompt, at most `max_length`; see `encode_batch`."""
        return self.encode_batch([(query, document)])[0]

    def encode_batch(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """The ids of a prompt for each pair (query, document), at most `max_length` of them.

        Texts are stripped of surrounding whitespace, and lone surrogates (which no tokenizer takes)
        become U+FFFD. A query is cut to three quarters of the room (after mxbai-rerank); then the
        document is cut to what is left. The template is never cut.
        """
        queries = self._slot((query for query, _ in pairs), self.query_end)
        documents = self._slot((document for _, document in pairs), self.document_end)
        fixed = len(self.head_ids) + len(self.middle_ids) + len(self.tail_ids)
        query_room = self.room * 3 // 4 + len(self.query_end.ids)
        prompts = []
        for query, document in pairs:
            query_ids = _cut(queries[query], query_room, self.query_end.ids)
            document_room = self.max_length - fixed - len(query_ids)
            document_ids = _cut(documents[document], document_room, self.document_end.ids)
            prompts.append(self._join(query_ids, document_ids))
        return prompts

    def _join(self, query_ids: list[int], document_ids: list[int]) -> list[int]:
        filled = [(query_ids, query_ids != self.query_end.ids), (document_ids, document_ids != self.document_end.ids)]
        (first, has_first), (second, has_second) = reversed(filled) if self.document_first else filled
        if has_first and has_second:
            return [*self.head_ids, *first, *self.middle_ids, *second, *self.tail_ids]
        if has_first:
            return [*self.head_ids, *first, *self.emptied.second]
        if has_second:
            return [*self.emptied.first, *second, *self.tail_ids]
        return [*self.emptied.both]

    def _slot(self, texts: Iterable[str], end: Newlines) -> dict[str, list[int]]:
        """Text -> its ids in the slot; a query of a hundred documents is tokenised once."""
        unique = list(dict.fromkeys(texts))
        filled = [_SURROGATES.sub("\ufffd", text).strip() + end.text for text in unique]
        return dict(zip(unique, encode_slots(self.slots, filled), strict=True))


def load_tokenizer(folder_or_id: str | Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a model folder or a Hugging Face hub id; remote code is never run.

    Raises:
      InputError: there is none, or it is not a fast tokenizer (`tokenizer.json`).
    """
    # transformers says at import that it found no PyTorch, which is as it should be here.
    silenced = os.environ.get("TRANSFORMERS_NO_ADVISORY_WARNINGS")
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast
    finally:
        if silenced is None:
            del os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"]
        else:
            os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = silenced
    folder = Path(folder_or_id)
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: has no tokenizer.json; copy the base model's tokenizer files into it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder_or_id), trust_remote_code=False)
    except Exception as error:  # the Rust parser raises Exception itself on a malformed tokenizer.json
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{folder_or_id}: no tokenizer could be loaded ({reason}); give a model folder or a hub id"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        kind = type(tokenizer).__name__
        raise InputError(f"{folder_or_id}: {kind} is not a fast tokenizer; convert it to a tokenizer.json")
    return tokenizer


def build_prompt(tokenizer: "PreTrainedTokenizerFast", config: PromptConfig, *, place: str) -> Prompt:
    """The prompt of a model: from `config.template`, else from the tokenizer's own template where
    that has the roles `query` and `document` (an exported folder), else made in its chat format.

    Args:
      place: the model folder, for messages.

    Raises:
      InputError: the template is malformed or lacks a role, an answer is not one token behind it,
        or `max_length` leaves no room.
    """
    source = f"{place}: chat template" if config.template is None else config.template
    try:
        chat = chat_template(tokenizer)
        if config.template is not None:
            template = _read(config.template)
        elif chat and is_pair_template(chat, tokenizer):
            template = chat
        else:
            instruction = INSTRUCTION if config.instruction is None else config.instruction
            template = make_template(tokenizer, instruction, config.answers, config.order == "document_first")
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

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [template_ids(tokenizer, text) for text in texts]

    document_first = rendered.index(DOCUMENT) < rendered.index(QUERY)
    if config.order not in (None, "document_first" if document_first else "query_first"):
        raise InputError(
            f"{source}: it prints the {'document' if document_first else 'query'} first, and prompt.order is "
            f"{config.order}; leave prompt.order out, or change the template"
        )
    first, second = (DOCUMENT, QUERY) if document_first else (QUERY, DOCUMENT)
    head, _, rest = rendered.partition(first)
    middle, _, tail = rest.partition(second)
    ends = [text[: len(text) - len(text.lstrip("\n"))] for text in (middle, tail)]
    middle, tail = middle.lstrip("\n"), tail.lstrip("\n")
    middle_ids, tail_ids, emptied_second = behind_newline(encode, [middle, tail, middle + ends[1] + tail])
    emptied_first = head + ends[0] + middle
    head_ids, *emptied = encode([head, emptied_first, emptied_first + ends[1] + tail])
    answer_ids = _answer_ids(tokenizer, tail, tail_ids, encode, config.answers, place)
    slots = slot_tokenizer(tokenizer, place)
    first_end, second_end = (Newlines(end, encode_slots(slots, [end])[0]) for end in ends)
    query_end, document_end = (second_end, first_end) if document_first else (first_end, second_end)
    end_token = turn_end(template, PAIR, tokenizer) or own_turn_end(tokenizer)
    if end_token is None:
        raise InputError(f"{place}: no token ends the assistant's turn; set eos_token in tokenizer_config.json")
    end_id = template_ids(tokenizer, end_token)[0]
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, end_id)
    return Prompt(
        tokenizer=tokenizer,
        template=template,
        max_length=config.max_length,
        answers=config.answers,
        answer_ids=answer_ids,
        end_id=end_id,
        pad_id=next(pad for pad in pads if pad is not None),
        head_ids=head_ids,
        middle_ids=middle_ids,
        tail_ids=tail_ids,
        emptied=Emptied(emptied[0], emptied_second, emptied[1]),
        query_end=query_end,
        document_end=document_end,
        document_first=document_first,
        slots=slots,
        place=place,
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name a file in prompt.template") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the template as UTF-8") from None


def _answer_ids(
    tokenizer: "PreTrainedTokenizerFast",
    tail: str,
    tail_ids: list[int],
    encode: Encode,
    answers: tuple[str, str],
    place: str,
) -> tuple[int, int]:
    """The one token that each answer adds to the prompt."""
    found = []
    answered = behind_newline(encode, [tail + answer for answer in answers])
    for answer, ids in zip(answers, answered, strict=True):
        if ids[:-1] != tail_ids:
            shared = len(os.path.commonprefix([ids, tail_ids]))
            tokens = tokenizer.convert_ids_to_tokens(ids[shared:])
            raise InputError(
                f"{place}: prompt.answers: {type(tokenizer).__name__} makes {tokens} of the answer {answer!r}, "
                "not one token behind the prompt; name two answers that are one token each"
            )
        found.append(ids[-1])
    if found[0] == found[1]:
        raise InputError(f"{place}: prompt.answers={answers}: both are token {found[0]}; name two that differ")
    return found[0], found[1]


def _cut(ids: list[int], room: int, end_ids: list[int]) -> list[int]:
    """Cuts a slot to `room` tokens, of which the last are the newlines behind it.

    >>> _cut([1, 2, 3, 4, 198], 3, [198])
    [1, 2, 198]
    """
    return ids if len(ids) <= room else ids[: room - len(end_ids)] + end_ids
