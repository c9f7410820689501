"""The verbs `prorank data ...`: training data, before there is a run."""

import time
from collections.abc import Mapping
from typing import Annotated

import typer

from prorank_jax.cli_options import Dtype, Fsdp, MaxLength, Order, help_without_a_verb, load_reranker
from prorank_jax.errors import InputError

Fields = Annotated[
    list[str] | None,
    typer.Option(help="Of rows under other names: OURS=THEIRS, as query=question or query=query.text; once for each."),
]

data_app = typer.Typer(
    help="Training data: hard negatives, a teacher's scores, and files prepared for training.",
    rich_markup_mode=None,
)
data_app.callback(invoke_without_command=True)(help_without_a_verb)


@data_app.command("prepare")
def data_prepare(
    source: Annotated[
        str,
        typer.Argument(
            help="A collection: beir/NAME, a BEIR folder, or a zip of one. Or rows: a file, a folder or pattern of "
            "files, or hf://datasets/..."
        ),
    ],
    out: Annotated[
        str | None, typer.Option(help="Of rows: the folder to write, which data.path of a configuration may name.")
    ] = None,
    single: Annotated[bool, typer.Option("--single", help="Of rows: for score.documents_per_query=1.")] = False,
    for_scores: Annotated[
        bool, typer.Option("--for-scores", help="Of rows: keep queries without a relevant document, to learn scores.")
    ] = False,
    fields: Fields = None,
    split: Annotated[
        str | None, typer.Option(help="Of a collection: retrieve the candidates of this split's queries, too.")
    ] = None,
    first_stage: Annotated[
        str | None, typer.Option(help="With --split: bm25 [default], or a run: a file, or its name.")
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="With --split: candidates per query [default: 100].")] = None,
) -> None:
    """Write a collection or files of rows as ArrayRecord, read by position; other commands do it by themselves too."""
    from prorank_jax.cache import VARIABLE
    from prorank_jax.data.candidates import open_candidates
    from prorank_jax.data.collections import describe, is_collection, open_collection, prepare_collection
    from prorank_jax.data.prepare import prepare
    from prorank_jax.storage import local

    of_split = {"--first-stage": first_stage, "--depth": depth}
    if split is None and (unused := [option for option, value in of_split.items() if value is not None]):
        raise InputError(
            f"{unused[0]}={of_split[unused[0]]}: is of the candidates of a split; name the split in --split"
        )
    if is_collection(source):
        of_rows = {"--out": out, "--single": single, "--for-scores": for_scores, "--fields": fields}
        for option, value in of_rows.items():
            if value:
                raise InputError(
                    f"{option}: is for rows, and {source} is a collection, which goes to the cache; leave it out "
                    f"(the cache is the folder that {VARIABLE} names)"
                )
        started = time.monotonic()
        print(describe(prepare_collection(source), time.monotonic() - started))
        if split is not None:
            started = time.monotonic()
            collection = open_collection(source, split)
            found = open_candidates(collection, first_stage or "bm25", depth or 100, show_progress=True)
            queries, seconds = len(found), time.monotonic() - started
            print(f"{collection.name}/{split}: candidates of {queries:,} queries; {seconds:.1f} s")
        return
    if split is not None:
        raise InputError(f"--split={split}: is for collections, and {source} is none; leave it out")
    if out is None:
        raise InputError(f"prorank data prepare: {source} is no collection; name a folder for its rows in --out")
    folder = local(out, "--out")
    positives_only = not for_scores and not single
    named = _fields(source, fields)
    remedy = "give another --out"
    prepared = prepare(source, folder, single=single, positives_only=positives_only, fields=named, remedy=remedy)
    print(f"{prepared.rows} rows, {prepared.groups} groups, {prepared.skipped} without a positive skipped: {out}")


@data_app.command("mine")
def data_mine(
    out: Annotated[str, typer.Option(help="File to write: .jsonl or .jsonl.gz.")],
    data: Annotated[str | None, typer.Option(help="A collection: beir/NAME, a BEIR folder, or a zip of one.")] = None,
    split: Annotated[str | None, typer.Option(help="Whose queries and judgements [default: train].")] = None,
    first_stage: Annotated[str | None, typer.Option(help="bm25 [default], or a run: a file, or its name.")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Candidates per query [default: 100].")] = None,
    ranks: Annotated[str | None, typer.Option(help="First and last rank of negatives [default: 1:DEPTH].")] = None,
    relative_margin: Annotated[
        float | None, typer.Option(help="Share of the lowest positive's score that a negative's must be below it.")
    ] = None,
    absolute_margin: Annotated[float | None, typer.Option(help="The same in the first stage's unit.")] = None,
    relevant_from: Annotated[
        int | None, typer.Option(min=1, help="Lowest judgement of a positive [default: 1].")
    ] = None,
    scores: Annotated[str | None, typer.Option(help="Mined and scored rows, to drop false negatives from.")] = None,
    max_score: Annotated[float | None, typer.Option(help="With --scores: highest score of a negative.")] = None,
    teacher_margin: Annotated[
        float | None, typer.Option(help="With --scores: how far a negative must be below the lowest positive.")
    ] = None,
    negatives: Annotated[int, typer.Option(min=1, help="Per query at most.")] = 7,
    positives: Annotated[int | None, typer.Option(min=1, help="Per query at most [default: all].")] = None,
    sample: Annotated[str, typer.Option(help="top: the first ranked negatives; random: any of the window.")] = "top",
    seed: Annotated[int, typer.Option(min=0, help="Of the random sample.")] = 0,
) -> None:
    """Hard negatives of a collection (--data), or those of a scored file that are not in doubt (--scores)."""
    from prorank_jax.data.candidates import open_candidates
    from prorank_jax.data.collections import open_collection
    from prorank_jax.data.false_negatives import Doubt, drop_false_negatives
    from prorank_jax.data.jsonl import check_out
    from prorank_jax.data.mine import Choice, Window, depth_of, mine, parse_ranks, write_mined
    from prorank_jax.storage import local

    mining = {
        "--split": split,
        "--first-stage": first_stage,
        "--depth": depth,
        "--ranks": ranks,
        "--relative-margin": relative_margin,
        "--absolute-margin": absolute_margin,
        "--relevant-from": relevant_from,
    }
    dropping = {"--max-score": max_score, "--teacher-margin": teacher_margin}
    if (data is None) == (scores is None):
        raise InputError("prorank data mine: give either --data or --scores, not both and not neither")
    mode, other = ("--scores", mining) if data is None else ("--data", dropping)
    if unused := [option for option, value in other.items() if value is not None]:
        raise InputError(f"{unused[0]}={other[unused[0]]}: has no meaning with {mode}; leave it out")
    choice = Choice(negatives, positives, sample, seed)
    file = local(out, "--out")
    check_out(file)
    if scores is not None:
        print(f"{drop_false_negatives(scores, file, Doubt(max_score, teacher_margin), choice)}: {out}")
    elif data is not None:
        first_and_last = None if ranks is None else parse_ranks(ranks)
        depth = depth_of(first_and_last, depth)
        lowest = 1 if relevant_from is None else relevant_from
        window = Window(first_and_last or (1, depth), relative_margin, absolute_margin, lowest)
        collection = open_collection(data, split or "train")
        found = open_candidates(collection, first_stage or "bm25", depth, show_progress=True)
        mined = mine(collection, found, window, choice)
        write_mined(mined, file)
        print(f"{mined}: {out}")


@data_app.command("score")
def data_score(
    files: Annotated[str, typer.Argument(help="Rows: a file, a folder or pattern of files, or hf://datasets/...")],
    teacher: Annotated[str, typer.Option(help="Reranker folder, Hugging Face hub id, or builtin:tiny.")],
    out: Annotated[str, typer.Option(help="File to write: .jsonl or .jsonl.gz; one begun before goes on.")],
    batch: Annotated[int | None, typer.Option(min=1, help="Prompts at a time [default: about 8,000 tokens].")] = None,
    max_length: MaxLength = None,
    order: Order = None,
    dtype: Dtype = "float32",
    fsdp: Fsdp = 1,
    fields: Fields = None,
) -> None:
    """Write a teacher's scores beside the documents of files of rows."""
    from prorank_jax.data.jsonl import check_out
    from prorank_jax.storage import local
    from prorank_jax.teacher import score_file

    file = local(out, "--out")
    check_out(file)
    named = _fields(files, fields)
    reranker = load_reranker(teacher, dtype, max_length, order, fsdp)
    done = score_file(reranker, files, file, batch_size=batch, fields=named, show_progress=True)
    went_on = f", {done.found} of them scored before" if done.found else ""
    print(f"{done.rows} rows, {done.documents} documents{went_on}: {out}")


def _fields(source: str, given: list[str] | None) -> Mapping[str, str]:
    """The values of --fields, checked as `data.fields` is."""
    from prorank_jax.config import SourceConfig
    from prorank_jax.config_file import parse_section

    for value in given or ():
        if "=" not in value:
            raise InputError(f"--fields={value}: names no field; write OURS=THEIRS, as query=question")
    fields = dict(value.split("=", 1) for value in given or ())
    return parse_section(SourceConfig, {"path": source, "fields": fields}, "--fields").fields
