"""What several verbs of the command line have."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from prorank_jax.reranker import Reranker

Model = Annotated[str, typer.Argument(help="Model folder, Hugging Face hub id, or builtin:tiny.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens of a prompt [default: as trained, else 512].")]
Order = Annotated[str | None, typer.Option(help="What a prompt shows first: query_first or document_first.")]
Fsdp = Annotated[int, typer.Option(min=1, help="Devices that hold one copy of the model together.")]
Dtype = Annotated[str, typer.Option(help="Compute dtype: float32 or bfloat16.")]


def load_reranker(model: str, dtype: str, max_length: int | None, order: str | None, fsdp: int) -> "Reranker":
    """The model that a verb scores with; what is compiled for it is kept for the next process."""
    from prorank_jax.reranker import Reranker
    from prorank_jax.runtime.compiled import keep_compiled

    keep_compiled()
    return Reranker.from_pretrained(model, dtype=dtype, max_length=max_length, order=order, fsdp=fsdp)


def help_without_a_verb(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
