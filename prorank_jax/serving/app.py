"""The pages of the server: what comes in by HTTP goes to the batcher, and what it computes goes out.

A page reads a request, gives its pairs to the batcher, and waits for the scores or for the client to leave.
"""

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Protocol

import numpy as np
from fastapi import Body, FastAPI, Request, Response

import prorank_jax
from prorank_jax.errors import InputError
from prorank_jax.relevance import probabilities
from prorank_jax.serving import refusals
from prorank_jax.serving.access import KeyRequired
from prorank_jax.serving.answers import Health, Info, ModelList, RerankAnswer, ScoreAnswer, TextResult
from prorank_jax.serving.batching import Batcher, Busy, Predictor, Stopping
from prorank_jax.serving.bodies import BodyLimit
from prorank_jax.serving.limits import Limits
from prorank_jax.serving.meters import LEFT, STATUS, Metered, Meters
from prorank_jax.serving.openapi import describe_in
from prorank_jax.serving.refusals import Refused, json_response
from prorank_jax.serving.shapes import EitherRequest, RerankRequest, ScoreRequest, TextsRequest


class Served(Predictor, Protocol):
    """What can be served, as a `Reranker`."""

    @property
    def max_length(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    def warm_up(self, pairs: int, stopping: Callable[[], bool]) -> None: ...


class ClientLeft(Exception):
    """Nobody waits for the answer."""


def make_app(
    reranker: Served,
    name: str,
    limits: Limits | None = None,
    api_key: str | None = None,
    *,
    warm: bool = False,
    threads: int = 2,
) -> FastAPI:
    """The application of a reranker, whose threads run from now until the application is shut down.

    Args:
      name: of the model, in answers.
      api_key: what requests must carry; None: anyone may ask.
      warm: compile the shapes of all lengths and batches first; `/health` says 503 until then.
      threads: that compute, each a batch at a time.
    """
    limits = limits or Limits()
    meters = Meters()

    def first(stopping: Callable[[], bool]) -> None:
        if warm:
            reranker.warm_up(limits.batch, stopping)

    batcher = Batcher(reranker, meters, queue=limits.queue, batch=limits.batch, threads=threads, first=first)
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(batcher.stop)

    app = FastAPI(
        title="prorank_jax",
        summary="Relevance of documents to a query.",
        version=prorank_jax.__version__,
        lifespan=lifespan,
        redoc_url=None,
    )

    async def score(
        request: Request, query: str, texts: list[str], field: str, instruction: str | None
    ) -> tuple[np.ndarray, int]:
        """Scores of texts, float32 [texts], and the tokens of their prompts.

        Raises:
          Refused: there are too many, or no room for them.
          ClientLeft: before they were computed.
        """
        if len(texts) > limits.documents:
            raise Refused(422, f"{field}: {len(texts)} are more than {limits.documents}; send fewer at a time")
        try:
            work = batcher.submit([(query, text) for text in texts], instruction)
        except Busy as error:
            raise Refused(429, str(error), {"Retry-After": str(error.retry_after)}) from None
        except Stopping:
            raise Refused(503, "the server is stopping; send the request to another") from None
        scores = asyncio.wrap_future(work.future)
        gone = asyncio.ensure_future(_gone(request))
        either: list[asyncio.Future[Any]] = [scores, gone]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if scores.done():
                return scores.result(), work.tokens
            raise ClientLeft
        except InputError as error:
            raise Refused(422, str(error)) from None
        finally:
            gone.cancel()
            if not scores.done():
                batcher.drop(work)

    @app.exception_handler(ClientLeft)
    async def client_left(request: Request, error: ClientLeft) -> Response:
        request.scope[STATUS] = LEFT
        return Response(status_code=int(LEFT))

    async def ranked(request: Request, asked: RerankRequest) -> Response:
        texts = asked.texts_of_documents()
        scores, tokens = await score(request, asked.query, texts, "documents", asked.instruction)
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": shown(scores[index], asked.raw_scores)} for index in best(scores)
        ]
        results = results[: asked.top_n or None]
        if asked.return_documents:
            for result in results:
                result["document"] = {"text": texts[result["index"]]}
        answer = {
            "id": f"rerank-{uuid.uuid4().hex}",
            "object": "list",
            "model": name,
            "results": results,
            "usage": usage(tokens),
            "meta": {
                "api_version": {"version": "2" if request.url.path.startswith("/v2") else "1"},
                "billed_units": {"search_units": search_units(len(texts))},
                "tokens": {"input_tokens": tokens, "output_tokens": 0},
            },
        }
        return json_response(answer)

    async def texts_ranked(request: Request, asked: TextsRequest) -> Response:
        scores, _ = await score(request, asked.query, asked.texts, "texts", None)
        results: list[dict[str, Any]] = [
            {"index": index, "score": shown(scores[index], asked.raw_scores)} for index in best(scores)
        ]
        if asked.return_text:
            for result in results:
                result["text"] = asked.texts[result["index"]]
        return json_response(results)

    @app.post("/v1/rerank", response_model=RerankAnswer, tags=["rank"])
    async def rerank_v1(request: Request, asked: Annotated[RerankRequest, Body()]) -> Response:
        """Rank documents for a query: the API of Cohere (version 1), Jina and vLLM."""
        return await ranked(request, asked)

    @app.post("/v2/rerank", response_model=RerankAnswer, tags=["rank"])
    async def rerank_v2(request: Request, asked: Annotated[RerankRequest, Body()]) -> Response:
        """The same, where clients of version 2 of Cohere's API look for it."""
        return await ranked(request, asked)

    @app.post("/rerank", response_model=RerankAnswer | list[TextResult], tags=["rank"])
    async def rerank(request: Request, asked: Annotated[EitherRequest, Body()]) -> Response:
        """The same; and with `texts` in place of `documents` the API of text-embeddings-inference."""
        if isinstance(asked, TextsRequest):
            return await texts_ranked(request, asked)
        return await ranked(request, asked)

    @app.post("/score", response_model=ScoreAnswer, tags=["score"])
    @app.post("/v1/score", response_model=ScoreAnswer, tags=["score"])
    async def score_texts(request: Request, asked: Annotated[ScoreRequest, Body()]) -> Response:
        """Scores of one text against one or several, in the order sent: the API of vLLM."""
        scores, tokens = await score(request, asked.text_1, asked.texts_of_documents(), "text_2", asked.instruction)
        data = [
            {"index": index, "object": "score", "score": shown(one, asked.raw_scores)}
            for index, one in enumerate(scores)
        ]
        now = int(time.time())
        answer = {"id": f"score-{uuid.uuid4().hex}", "object": "list", "created": now, "model": name, "data": data}
        return json_response({**answer, "usage": usage(tokens)})

    @app.get("/v1/models", response_model=ModelList, tags=["server"])
    async def models() -> Response:
        """The model that is served."""
        card = {"id": name, "object": "model", "created": started, "owned_by": "prorank_jax"}
        return json_response({"object": "list", "data": [{**card, "max_model_len": reranker.max_length}]})

    @app.get("/info", response_model=Info, tags=["server"])
    async def info() -> Response:
        """The model and the limits, as clients of text-embeddings-inference ask for them."""
        return json_response(
            {
                "model_id": name,
                "model_sha": None,
                "model_dtype": reranker.dtype,
                "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
                "max_concurrent_requests": limits.queue,
                "max_input_length": reranker.max_length,
                "max_batch_tokens": limits.batch * reranker.max_length,
                "max_batch_requests": limits.batch,
                "max_client_batch_size": limits.documents,
                "auto_truncate": True,
                "tokenization_workers": threads,
                "version": prorank_jax.__version__,
                "sha": None,
                "docker_label": None,
            }
        )

    @app.get("/health", response_model=Health, tags=["server"])
    async def health() -> Response:
        """Whether requests are answered at once: 503 while the server warms up."""
        if not batcher.ready:
            raise Refused(503, "the server is warming up or stopping; ask again", {"Retry-After": "1"})
        return json_response({"status": "ok"})

    @app.get("/metrics", response_class=Response, tags=["server"])
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(meters.text(), media_type="text/plain; version=1.0.0; charset=utf-8")

    refusals.install(app)
    describe_in(app, limits, secured=api_key is not None)
    # The last added is the first to see a request.
    app.add_middleware(BodyLimit, limits=limits, meters=meters)
    if api_key is not None:
        app.add_middleware(KeyRequired, key=api_key)
    app.add_middleware(Metered, meters=meters, paths=list(app.openapi()["paths"]))
    return app


def best(scores: np.ndarray) -> Sequence[int]:
    """Places of the scores, best first; equal ones in their order."""
    places: list[int] = np.argsort(-scores, kind="stable").tolist()
    return places


def shown(score: np.float32, raw: bool | None) -> float:
    """A score as it is sent, or the probability that it stands for.

    >>> shown(np.float32(0), raw=False)
    0.5
    """
    return float(score if raw else probabilities(score))


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def search_units(documents: int) -> int:
    """Cohere's unit: a query with up to 100 documents. None of them is split here, however long it is."""
    return math.ceil(documents / 100)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
