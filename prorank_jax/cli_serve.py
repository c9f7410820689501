"""The verb `prorank serve`: a model behind HTTP."""

from typing import Annotated

import typer

from prorank_jax.cli_options import Dtype, Fsdp, MaxLength, Model, Order, load_reranker
from prorank_jax.errors import InputError


def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    name: Annotated[str | None, typer.Option(help="Of the model, in answers [default: its folder or hub id].")] = None,
    warm_up: Annotated[bool, typer.Option("--warm-up", help="Compile all shapes before /health says ok.")] = False,
    max_documents: Annotated[int, typer.Option(min=1, help="Of one request; more are a 422.")] = 1000,
    max_body: Annotated[int, typer.Option(min=1, help="MiB of one request; more are a 413.")] = 16,
    max_held: Annotated[int, typer.Option(min=1, help="MiB of all requests at once; more are a 429.")] = 128,
    max_queue: Annotated[int, typer.Option(min=1, help="Documents that wait at once; more are a 429.")] = 4096,
    batch: Annotated[int, typer.Option(min=1, help="Documents computed together.")] = 32,
    graceful_timeout: Annotated[int, typer.Option(min=1, help="Seconds that requests have to end at a stop.")] = 60,
    max_length: MaxLength = None,
    order: Order = None,
    dtype: Dtype = "float32",
    fsdp: Fsdp = 1,
) -> None:
    """Answer HTTP requests with scores: POST /v1/rerank as Cohere, Jina and vLLM have it, /rerank as TEI; see /docs."""
    try:
        from prorank_jax.serving.access import key_of_environment
        from prorank_jax.serving.limits import MIB, Limits
        from prorank_jax.serving.server import Serving, bind, name_of
        from prorank_jax.serving.server import serve as run
    except ModuleNotFoundError as error:
        raise InputError(
            f"prorank serve: needs {error.name}, which is not installed; run: pip install 'prorank_jax[serve]'"
        ) from None
    limits = Limits(max_documents, max_body * MIB, max_held * MIB, max_queue, batch)
    serving = Serving(name or name_of(model), limits, key_of_environment(), warm_up, graceful_timeout)
    with bind(host, port) as bound:
        run(load_reranker(model, dtype, max_length, order, fsdp), bound, serving)
