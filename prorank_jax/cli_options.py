"""What several verbs of the command line have."""

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Model folder, Hugging Face hub id, or builtin:tiny.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens of a prompt [default: as trained, else 512].")]
Order = Annotated[str | None, typer.Option(help="What a prompt shows first: query_first or document_first.")]
Fsdp = Annotated[int, typer.Option(min=1, help="Devices that hold one copy of the model together.")]
Dtype = Annotated[str, typer.Option(help="Compute dtype: float32 or bfloat16.")]


def help_without_a_verb(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
