"""A rendered template, cut into pieces of token ids that stay the same, and two slots between them.

    head | slot | middle | slot | tail

What fills a slot is tokenised by a private copy of the tokenizer that knows no control tokens, so nothing that a query
or a document says can leave its slot. The cuts are where no tokenizer joins tokens, behind newlines and beside control
tokens: what stands between a cut and a text (a label before it, the newlines behind it) is tokenised together with the
text, as "?\\n" is one token of Qwen's and " love" another. So the joined ids are those of the whole rendered string.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tokenizers import Tokenizer

from prorank_jax.errors import InputError
from prorank_jax.slots import behind_newline, control_tokens, encode_slots
from prorank_jax.templates import DOCUMENT, QUERY, SYSTEM, answer_tail, template_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Slot(NamedTuple):
    """The place of a text: what the template has before and behind it up to the next cut, and the ids of that alone."""

    before: str
    after: str
    before_ids: list[int]
    after_ids: list[int]

    @property
    def length(self) -> int:
        """Tokens of an empty slot at most."""
        return len(self.before_ids) + len(self.after_ids)

    def is_empty(self, ids: list[int]) -> bool:
        """Whether the slot holds nothing but what is behind it, whose newlines then meet those before it."""
        return ids == self.after_ids


class Emptied(NamedTuple):
    """The pieces where a slot is empty and its newlines meet those before it (":\\n\\n" is one token of Qwen's)."""

    first: list[int]
    """Head and middle."""
    second: list[int]
    """Middle and tail."""
    both: list[int]


@dataclass(frozen=True)
class Pieces:
    """The fixed ids of a template, and its slots."""

    head_ids: list[int]
    middle_ids: list[int]
    tail_ids: list[int]
    query: Slot
    document: Slot
    document_first: bool
    emptied: Emptied

    @property
    def length(self) -> int:
        """Tokens of the template alone."""
        return len(self.head_ids) + len(self.middle_ids) + len(self.tail_ids) + self.query.length + self.document.length

    def length_around_document(self, query_ids: list[int]) -> int:
        """Tokens of a prompt without what fills the document's slot."""
        filled = [-1]
        return len(self.join(query_ids, filled)) - len(filled)

    def part(self, query_ids: list[int], document_ids: list[int]) -> tuple[list[int], list[int]]:
        """The prompt of two filled slots, parted where it stops being the same for all documents of the query.

        With an empty slot nothing is told to be the same.
        """
        if self.query.is_empty(query_ids) or self.document.is_empty(document_ids):
            return [], self.join(query_ids, document_ids)
        if self.document_first:
            return self.head_ids, [*document_ids, *self.middle_ids, *query_ids, *self.tail_ids]
        return [*self.head_ids, *query_ids, *self.middle_ids], [*document_ids, *self.tail_ids]

    def join(self, query_ids: list[int], document_ids: list[int]) -> list[int]:
        """The prompt of two filled slots."""
        slots = [(query_ids, self.query.is_empty(query_ids)), (document_ids, self.document.is_empty(document_ids))]
        (first, no_first), (second, no_second) = reversed(slots) if self.document_first else slots
        if not no_first and not no_second:
            return [*self.head_ids, *first, *self.middle_ids, *second, *self.tail_ids]
        if not no_first:
            return [*self.head_ids, *first, *self.emptied.second]
        if not no_second:
            return [*self.emptied.first, *second, *self.tail_ids]
        return [*self.emptied.both]


def cut_template(
    rendered: str, tokenizer: "PreTrainedTokenizerFast", slots: Tokenizer, instruction: str = ""
) -> Pieces:
    """Cuts a template that was rendered with each of its sentinels once.

    Args:
      slots: the tokenizer without control tokens (`slots.slot_tokenizer`).
      instruction: what stands where SYSTEM was rendered; it is tokenised as the texts are, and can hold no control
        token either.
    """
    cuts = _Cuts(tokenizer)

    def ids_of(text: str) -> list[int]:
        """Fixed text, in which an instruction stands or not."""
        if SYSTEM not in text:
            return template_ids(tokenizer, text)
        left, _, right = text.partition(SYSTEM)
        fixed, before = cuts.last(left)
        after, rest = cuts.first(right)
        [told] = encode_slots(slots, [before + instruction + after])
        [rest_ids] = behind_newline(encode, [rest])
        return [*template_ids(tokenizer, fixed), *told, *rest_ids]

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [ids_of(text) for text in texts]

    document_first = rendered.index(DOCUMENT) < rendered.index(QUERY)
    first, second = (DOCUMENT, QUERY) if document_first else (QUERY, DOCUMENT)
    head, _, rest = rendered.partition(first)
    middle, _, tail = rest.partition(second)
    head, before_first = cuts.last(head)
    # Where the middle has no cut, it is read together with what follows it.
    after_first, middle = cuts.first(middle) if cuts.has_one(middle) else ("", middle)
    middle, before_second = cuts.last(middle)
    after_second, tail = cuts.first(tail)

    middle_ids, tail_ids, emptied_second = behind_newline(encode, [middle, tail, middle + after_second + tail])
    emptied_first = head + after_first + middle
    head_ids, *emptied = encode([head, emptied_first, emptied_first + after_second + tail])

    def slot(before: str, after: str) -> Slot:
        before, after = (text.replace(SYSTEM, instruction) for text in (before, after))
        return Slot(before, after, *encode_slots(slots, [before, after]))

    made = slot(before_first, after_first), slot(before_second, after_second)
    query, document = reversed(made) if document_first else made
    return Pieces(
        head_ids,
        middle_ids,
        tail_ids,
        query,
        document,
        document_first,
        Emptied(emptied[0], emptied_second, emptied[1]),
    )


def find_answer_ids(
    rendered: str, tokenizer: "PreTrainedTokenizerFast", answers: tuple[str, str], place: str
) -> tuple[int, int]:
    """The one token that each answer adds behind a rendered template.

    Raises:
      InputError: an answer adds several tokens, or both add the same.
    """

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [template_ids(tokenizer, text) for text in texts]

    tail = answer_tail(rendered)
    found = []
    tail_ids, *answered = behind_newline(encode, [tail, *(tail + answer for answer in answers)])
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


class _Cuts:
    """Finds in the text of a template where no tokenizer joins tokens: behind newlines, beside control tokens."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        control = "".join(f"{re.escape(token)}|" for token in control_tokens(tokenizer).values())
        self._any = re.compile(control + r"\n")
        self._first = re.compile(control + r"(?P<newlines>\n(?:\s*\n)*)")

    def has_one(self, text: str) -> bool:
        return bool(self._any.search(text))

    def last(self, text: str) -> tuple[str, str]:
        """The text parted at its last cut; all of it is right of the cut where it has none."""
        end = max((match.end() for match in self._any.finditer(text)), default=0)
        return text[:end], text[end:]

    def first(self, text: str) -> tuple[str, str]:
        """The text parted at its first cut, where newlines stay together; all of it is left where it has none."""
        found = self._first.search(text)
        if found is None:
            return text, ""
        cut = found.end() if found["newlines"] else found.start()
        return text[:cut], text[cut:]
