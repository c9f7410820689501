"""What clients get: answers in the forms of Cohere, Jina, vLLM and text-embeddings-inference (TEI)."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class ReturnedDocument(BaseModel):
    text: str


class Result(BaseModel):
    index: Annotated[int, Field(description="Place in the list that was sent, from 0.")]
    relevance_score: Annotated[float, Field(description="In 0..1, the sigmoid of the model's score, or that score.")]
    document: ReturnedDocument | None = None


class Usage(BaseModel):
    """Tokens of the prompts that were computed, one for each document: template, query and document, after the cut."""

    prompt_tokens: int
    total_tokens: int


class ApiVersion(BaseModel):
    version: Literal["1", "2"]


class BilledUnits(BaseModel):
    search_units: Annotated[int, Field(description="One for each 100 documents, or part of them.")]


class Tokens(BaseModel):
    input_tokens: Annotated[int, Field(description="As `total_tokens` of `usage`.")]
    output_tokens: Literal[0]


class Meta(BaseModel):
    """What Cohere's clients read in place of `usage`."""

    api_version: ApiVersion
    billed_units: BilledUnits
    tokens: Tokens


class RerankAnswer(BaseModel):
    """Results, best first; equal scores in the order sent."""

    id: str
    object: Literal["list"]
    model: str
    results: list[Result]
    usage: Usage
    meta: Meta


class TextResult(BaseModel):
    index: int
    score: float
    text: str | None = None


class ScoreResult(BaseModel):
    index: int
    object: Literal["score"]
    score: float


class ScoreAnswer(BaseModel):
    """Scores in the order sent."""

    id: str
    object: Literal["list"]
    created: Annotated[int, Field(description="Seconds since 1970.")]
    model: str
    data: list[ScoreResult]
    usage: Usage


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Labels(BaseModel):
    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(BaseModel):
    reranker: Labels


class Info(BaseModel):
    """The form of TEI's `/info`."""

    model_id: str
    model_sha: None
    model_dtype: Annotated[str, Field(description="What is computed with.")]
    model_type: ModelType
    max_concurrent_requests: Annotated[int, Field(description="Requests of one document that may wait at once.")]
    max_input_length: Annotated[
        int, Field(description="Tokens of a prompt, of which a query and a document are parts.")
    ]
    max_batch_tokens: int
    max_batch_requests: Annotated[int, Field(description="Documents computed together.")]
    max_client_batch_size: Annotated[int, Field(description="Documents of a request.")]
    auto_truncate: Annotated[bool, Field(description="Longer texts are cut.")]
    tokenization_workers: int
    version: Annotated[str, Field(description="Of prorank_jax.")]
    sha: None
    docker_label: None


class Health(BaseModel):
    status: Literal["ok"]
