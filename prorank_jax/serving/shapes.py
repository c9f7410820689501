"""What clients send: the forms of Cohere, Jina and vLLM, and those of text-embeddings-inference (TEI).

Clients write null for a field that they leave out, and some write booleans and whole numbers as text; those are read.
Anything else of the wrong type is refused. Fields that are not here are ignored (docs/serve.md lists them).
"""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.json_schema import SkipJsonSchema

from prorank_jax.data.beir_files import full_text
from prorank_jax.serving.limits import MOST_DOCUMENTS


def _encodable(value: Any) -> Any:
    """JSON may hold half of a character, `"\\ud800"`, which is no text; it becomes U+FFFD, as in the prompt."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


_BOOLEANS = {text: text.lower() == "true" for text in ("true", "True", "TRUE", "false", "False", "FALSE")}
_MOST_DIGITS = 18


def _boolean(value: Any) -> Any:
    """Reads true and false in text; "1" and "yes" are no booleans."""
    return _BOOLEANS.get(value.strip(), value) if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is an integer. So is "3" in text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(f"-?[0-9]{{1,{_MOST_DIGITS}}}", value.strip()):
        return int(value)
    return value


def _cut_is_fine(value: Any) -> Any:
    if _boolean(value) is False:
        raise ValueError("texts are always cut to the model's length; leave it out, or say true")
    return _boolean(value)


def _or_text(typed: dict[str, Any], text: dict[str, Any]) -> WithJsonSchema:
    """The schema of a value that is also read from text, and may be null."""
    return WithJsonSchema({"anyOf": [typed, {"type": "string", **text}, {"type": "null"}]})


Boolean = Annotated[bool | None, BeforeValidator(_boolean), _or_text({"type": "boolean"}, {"enum": list(_BOOLEANS)})]
CutIsFine = Annotated[
    Literal[True] | None,
    BeforeValidator(_cut_is_fine),
    _or_text({"const": True}, {"enum": [text for text, value in _BOOLEANS.items() if value]}),
]
Count = Annotated[
    Annotated[int, Field(ge=0)] | None,
    BeforeValidator(_whole),
    _or_text({"type": "integer", "minimum": 0}, {"pattern": "^[0-9]+$", "maxLength": _MOST_DIGITS}),
]


def _one_text(value: Any) -> Any:
    if isinstance(value, list):
        raise ValueError("Input should be one text; send one request a query")
    return value


Text = Annotated[str, BeforeValidator(_encodable)]
Query = Annotated[
    Text, BeforeValidator(_one_text), Field(description="What is looked for.", examples=["which place serves fish"])
]
RawScores = Annotated[
    Boolean,
    Field(description="Scores as the model gives them, differences of two logits [default: their sigmoid, in 0..1]."),
]
Model = Annotated[Text | None, Field(description="Any name: this server has one model.")]
Instruction = Annotated[Text | None, Field(description="The task, in place of the one in the model's prompt.")]


class _Request(BaseModel):
    # Not lax, in which true is a number and "3" one as well.
    model_config = ConfigDict(strict=True)


class DocumentObject(_Request):
    """A document as an object: its text, and a title if it has one, which is read before the text.

    With `rank_fields`, a list of names, the values of the fields that it names are read in their place.
    """

    text: Text
    title: Text | None = None


def _each_once(names: list[str]) -> list[str]:
    # Otherwise a small request could ask for a text that fills the memory.
    return list(dict.fromkeys(names))


def _fields_joined(document: Any, info: ValidationInfo) -> Any:
    """The values of the fields that `rank_fields` names, one after the other as Cohere reads them."""
    names = info.data.get("rank_fields")
    if not names or not isinstance(document, dict):
        return document
    texts = [document.get(name) for name in names]
    for name, text in zip(names, texts, strict=True):
        if name not in document or not isinstance(text, str | None):
            raise ValueError(f"no text in {name[:60]!a}, a field of rank_fields; add it, or name other fields")
    if not any(isinstance(text, str) for text in texts):
        raise ValueError("no text in the fields that rank_fields names; add it, or name other fields")
    return " ".join(text for text in texts if text).strip()


Document = Annotated[
    Annotated[Text, Tag("form:text")] | Annotated[DocumentObject, Tag("form:object")],
    Discriminator(lambda value: "form:object" if isinstance(value, dict | DocumentObject) else "form:text"),
    BeforeValidator(_fields_joined),
]


class RerankRequest(_Request):
    """The form of Cohere, Jina and vLLM."""

    query: Query
    # Its names are those of the documents' fields, which no schema can say: the page describes it in words.
    rank_fields: SkipJsonSchema[Annotated[list[Text], AfterValidator(_each_once)] | None] = None
    documents: Annotated[list[Document], Field(min_length=1, max_length=MOST_DOCUMENTS, fail_fast=True)]
    top_n: Annotated[Count, Field(description="How many of the best to give [default, and 0 as in vLLM: all].")] = None
    return_documents: Annotated[Boolean, Field(description="Give the texts, too [default: false].")] = None
    raw_scores: RawScores = None
    instruction: Instruction = None
    model: Model = None

    def texts_of_documents(self) -> list[str]:
        """What is scored of each document."""
        return [
            document if isinstance(document, str) else full_text(document.title or "", document.text)
            for document in self.documents
        ]


class TextsRequest(_Request):
    """The form of TEI."""

    query: Query
    texts: Annotated[list[Text], Field(min_length=1, max_length=MOST_DOCUMENTS, fail_fast=True)]
    raw_scores: RawScores = None
    return_text: Annotated[Boolean, Field(description="Give the texts, too [default: false].")] = None
    truncate: Annotated[CutIsFine, Field(description="Texts are always cut to the model's length.")] = None
    truncation_direction: Annotated[
        Literal["right", "Right"] | None, Field(description="It is the end that is cut.")
    ] = None


def _form(value: Any) -> str:
    texts = isinstance(value, TextsRequest) or (isinstance(value, dict) and value.get("texts") is not None)
    return "form:texts" if texts else "form:documents"


EitherRequest = Annotated[
    Annotated[RerankRequest, Tag("form:documents")] | Annotated[TextsRequest, Tag("form:texts")],
    Discriminator(_form),
]


class ScoreRequest(_Request):
    """The form of vLLM's `/score`: one text against one, or against each of several."""

    text_1: Query
    text_2: Annotated[
        Annotated[Text, Tag("form:one")]
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_DOCUMENTS, fail_fast=True), Tag("form:several")],
        Discriminator(lambda value: "form:several" if isinstance(value, list) else "form:one"),
    ]
    raw_scores: RawScores = None
    instruction: Instruction = None
    model: Model = None

    def texts_of_documents(self) -> list[str]:
        """What is scored."""
        return [self.text_2] if isinstance(self.text_2, str) else self.text_2
