"""The verb `prorank rerank`: documents in the model's order, from the shell."""

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from prorank_jax.cli_options import Dtype, Fsdp, MaxLength, Model, Order, load_reranker
from prorank_jax.errors import InputError

_DEPTH = 100
_TAG = "prorank"
_BROKEN_PIPE = 141
"""What a shell tells of a command that wrote to a pipe nobody reads any more (128 + SIGPIPE)."""


def rerank(
    model: Model,
    documents: Annotated[
        str | None,
        typer.Argument(help="Text, a document a line; JSON lines; with --data a run. - is standard input."),
    ] = None,
    query: Annotated[str | None, typer.Option(help="The query [default: each JSON line has its own].")] = None,
    document: Annotated[list[str] | None, typer.Option(help="A document; may be given again.")] = None,
    data: Annotated[str | None, typer.Option(help="Of a run: its collection, as for prorank evaluate.")] = None,
    split: Annotated[str | None, typer.Option(help="With --data: whose queries [default: test].")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="With --data: candidates per query [default: 100].")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="How many to write of a query [default: all].")] = None,
    instruction: Annotated[str | None, typer.Option(help="The task, in place of the prompt's own.")] = None,
    read_as: Annotated[
        str | None, typer.Option("--input-format", help="text or jsonl [default: by name; of -, text with --query].")
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="File to write: .jsonl, .jsonl.gz, .trec or another [default: print].")
    ] = None,
    write_as: Annotated[
        str | None, typer.Option("--format", help="text, jsonl or trec [default: by --out, else as what is read].")
    ] = None,
    with_documents: Annotated[bool, typer.Option("--with-documents", help="In JSON lines: the documents too.")] = False,
    tag: Annotated[str | None, typer.Option(help="Of a TREC run: its last column [default: prorank].")] = None,
    max_length: MaxLength = None,
    order: Order = None,
    dtype: Dtype = "float32",
    fsdp: Fsdp = 1,
) -> None:
    """Score documents for queries, best first: arguments, text, JSON lines (answered as they come), or a run."""
    if (documents is None) == (not document):
        raise InputError("prorank rerank: give either DOCUMENTS or --document, not both and not neither")
    if data is None:
        _refuse({"--split": split, "--depth": depth}, "without --data")
    else:
        _refuse({"--query": query, "--document": document, "--input-format": read_as}, "with --data")

    from prorank_jax.reranker import Reranker
    from prorank_jax.reranking.answers import JSONL, TEXT, TREC, format_of, json_form, text_form, trec_form, written
    from prorank_jax.reranking.requests import STDIN, begun, input_format_of, is_live, open_requests
    from prorank_jax.reranking.stream import ranked
    from prorank_jax.storage import local

    file = None if out is None else local(out, "--out")
    reads = TREC if data is not None else input_format_of(documents, query, read_as)
    writes = format_of(file, write_as, reads)
    if query is None and writes == TEXT:
        raise InputError("--format=text: is for the documents of one --query; use jsonl or trec")
    if query is not None and writes == TREC:
        raise InputError(
            '--format=trec: a run names its queries; give JSON lines of {"_id": ..., "query": ..., "documents": [...]}'
        )
    unused = {"--with-documents": with_documents and writes != JSONL, "--tag": tag and writes != TREC}
    _refuse(unused, f"where {writes} is written")
    if file is not None:
        _check_out(file, documents)
    tag = _TAG if tag is None else tag
    form = {TEXT: text_form, JSONL: json_form(with_documents), TREC: trec_form(tag)}[writes]

    def load() -> Reranker:
        return load_reranker(model, dtype, max_length, order, fsdp)

    if data is not None:
        from prorank_jax.data.candidates import candidates
        from prorank_jax.data.collections import open_collection
        from prorank_jax.reranking.run import rankings, write_reranked

        collection = open_collection(data, split or "test")
        # So that a pipe can be the first stage, too.
        first_stage = "/dev/stdin" if documents == STDIN else str(documents)
        run = candidates(collection, first_stage, depth or _DEPTH)
        if file is not None and writes == TREC:
            write_reranked(file, load(), collection, run, instruction, top_k, tag)
            return
        found = rankings(load(), collection, run, instruction, top_k)
    else:
        live = documents is not None and is_live(documents)
        requests = open_requests(documents, document or (), query, reads)
        # What is wrong with a file is told before a model is loaded.
        requests = requests if live else begun(requests)
        found = ranked(load(), requests, query, instruction, top_k, live=live)
    if file is None:
        for ranking in found:
            _print(form(ranking))
    else:
        with written(file) as write:
            for ranking in found:
                write(form(ranking))


def _refuse(given: Mapping[str, object], where: str) -> None:
    if unused := [option for option, value in given.items() if value]:
        raise InputError(f"{unused[0]}: has no meaning {where}; leave it out")


def _check_out(file: Path, documents: str | None) -> None:
    if file.is_dir():
        raise InputError(f"{file}: is a folder; give the path of a file")
    if documents is not None and file.exists() and Path(documents).exists() and file.samefile(documents):
        raise InputError(f"{file}: is the input as well; give another --out")


def _print(lines: Iterable[str]) -> None:
    """Prints lines at once.

    Raises:
      typer.Exit: nobody reads them.
    """
    from prorank_jax.progress import visible

    # What documents say must not steer a terminal; a file or another command gets them as they are.
    shown = visible if sys.stdout.isatty() else str
    try:
        for line in lines:
            print(shown(line))
        sys.stdout.flush()
    except BrokenPipeError:
        # Python writes what is left when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(_BROKEN_PIPE) from None
