"""A teacher writes its scores beside the documents of a file of rows, and goes on where it was stopped.

Rows are scored in chunks. Where a chunk ends depends on the rows before it alone, so a score does not depend on where
the work was cut, and the file is byte for byte that of work that was not (`data/part.py`).
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from prorank_jax.cross_encoder import LOGIT_SCORE
from prorank_jax.data.files import NONE, find_files
from prorank_jax.data.jsonl import Row, check_out, encode_rows, read_rows
from prorank_jax.data.part import Part
from prorank_jax.data.rows import shape_of
from prorank_jax.errors import InputError
from prorank_jax.progress import progress
from prorank_jax.prompt import Prompt
from prorank_jax.relevance import NotFinite, finite
from prorank_jax.reranker import Reranker

_CHUNK = 1024
"""Documents of a chunk at least, where the rows last."""
_REMEDY = "use --dtype float32, or another teacher"
_ANSWERS = (("0", "1"), ("no", "yes"), ("false", "true"))
_WORD = re.compile(r"\w+")

Placed = tuple[str, Row]


class Scored(NamedTuple):
    """What was done: rows and documents of the file, and the rows that an earlier call had scored."""

    rows: int
    documents: int
    found: int


def score_file(
    teacher: Reranker,
    source: str | Path,
    out: Path,
    *,
    batch_size: int | None = None,
    fields: Mapping[str, str] = NONE,
    show_progress: bool = False,
) -> Scored:
    """Writes the rows of `source` to `out` with the teacher's scores beside their documents.

    `document` gets `score`; `pos` and `neg` get `pos_scores` and `neg_scores`; `documents` get `scores`. Scores that
    are there already are replaced, and all else is kept (of Parquet, what a row of training data may have).

    Args:
      source: what `files.find_files` takes.
      batch_size: as `Reranker.predict`.
      fields: as `files.read_fields`.

    Raises:
      InputError: `source` is not files of rows, the teacher's answers are not its template's, `out` was begun with
        something else, or a score is not finite.
    """
    check_out(out)
    named = Path(teacher.prompt.place) / LOGIT_SCORE / "config.json"
    check_answers(teacher.prompt, str(named) if named.exists() else teacher.prompt.place)
    files = find_files(source)
    if out.exists() and any(out.samefile(file) for file in files):
        raise InputError(f"{out}: is the input as well; give another --out")
    rows, documents = _count(source, fields, teacher.prompt)
    made_of = {
        "--batch": batch_size,
        "--max-length": teacher.max_length,
        "--dtype": teacher.dtype,
        "the input": _sha256_of_files(files),
        "the teacher": teacher.digest,
        "--fields": dict(fields),
        "chunks": _CHUNK,
    }
    with Part(out) as part:
        found = part.open(made_of)
        with progress("scoring", rows, show_progress, done=found) as advance:
            for chunk in _chunks(read_rows(source, fields), skip=found):
                part.add(encode_rows(_scored(teacher, chunk, batch_size), out), len(chunk))
                advance(len(chunk))
        part.finish()
    return Scored(rows, documents, found)


def check_answers(prompt: Prompt, place: str) -> None:
    """Refuses a teacher whose template asks for other answers than those whose logits are its score.

    A template that names no known pair of answers, such as `0` and `1` or `yes` and `no`, is let through.

    Args:
      place: where the answers are named, for the message.

    Raises:
      InputError: both words of a known pair stand in the template, and neither of the teacher's.
    """
    pieces = prompt.pieces
    slots = [pieces.query.before, pieces.query.after, pieces.document.before, pieces.document.after]
    fixed = [str(prompt.tokenizer.decode(ids)) for ids in (pieces.head_ids, pieces.middle_ids, pieces.tail_ids)]
    words = {word.casefold() for text in (*fixed, *slots) for word in _WORD.findall(text)}
    if words & {answer.strip().casefold() for answer in prompt.answers}:
        return
    for asked in _ANSWERS:
        if words.issuperset(asked):
            ids = " and ".join(map(str, prompt.answer_ids))
            raise InputError(
                f"{place}: the answer tokens {ids} are {prompt.answers[0]!r} and {prompt.answers[1]!r}, and the "
                f"template asks for {asked[0]!r} or {asked[1]!r}; name the tokens of these, or mend chat_template.jinja"
            )


def _count(source: str | Path, fields: Mapping[str, str], prompt: Prompt) -> tuple[int, int]:
    """Rows and documents of the input; reads it whole, so that a bad line is told before any work."""
    rows = documents = 0
    told = False
    for place, row in read_rows(source, fields):
        rows += 1
        documents += len(_documents(row, place))
        if row.get("instruction") and not told:
            told = True
            try:
                prompt.with_instruction(row["instruction"])
            except InputError as error:
                raise InputError(f"{place}: {error}") from None
    return rows, documents


def _chunks(rows: Iterable[Placed], skip: int) -> Iterator[list[Placed]]:
    """Whole rows, `_CHUNK` documents or just above; `skip` rows, which end a chunk, are left out."""
    chunk: list[Placed] = []
    documents = 0
    for number, (place, row) in enumerate(rows):
        if number < skip:
            continue
        chunk.append((place, row))
        documents += len(_documents(row, place))
        if documents >= _CHUNK:
            yield chunk
            chunk, documents = [], 0
    if chunk:
        yield chunk


def _documents(row: Row, place: str) -> list[str]:
    """The documents of a row, one field's behind the other's."""
    fields = shape_of(place, row)
    return [row["document"]] if fields == ("document",) else [text for field in fields for text in row[field]]


def _scored(teacher: Reranker, chunk: Sequence[Placed], batch_size: int | None) -> Iterator[Row]:
    """The rows of a chunk with their scores.

    Raises:
      InputError: a score is not finite, or an instruction does not fit.
    """
    by_instruction: dict[str | None, list[int]] = {}
    for number, (_, row) in enumerate(chunk):
        by_instruction.setdefault(row.get("instruction") or None, []).append(number)
    scores: dict[int, list[float]] = {}
    for instruction, numbers in by_instruction.items():
        documents = [_documents(chunk[number][1], chunk[number][0]) for number in numbers]
        pairs = [(chunk[n][1]["query"], text) for n, texts in zip(numbers, documents, strict=True) for text in texts]
        names = [
            f"{chunk[n][0]}: the teacher's score of document {place} of the line"
            for n, texts in zip(numbers, documents, strict=True)
            for place in range(1, len(texts) + 1)
        ]
        try:
            found = finite(
                teacher.predict(pairs, instruction=instruction, batch_size=batch_size), names.__getitem__, _REMEDY
            )
        except NotFinite as error:
            raise NotFinite(names[error.position], error.position, error.value, _REMEDY) from None
        except InputError as error:
            raise InputError(f"{chunk[numbers[0]][0]}: {error}") from None
        # As few digits as give back the same 32 bits.
        values = iter([float(str(score)) for score in found])
        for number, texts in zip(numbers, documents, strict=True):
            scores[number] = [next(values) for _ in texts]
    for number, (place, row) in enumerate(chunk):
        yield _beside(row, place, scores[number])


def _beside(row: Row, place: str, scores: list[float]) -> Row:
    """The row with its scores, in the order of `_documents`."""
    fields = shape_of(place, row)
    if fields == ("document",):
        return row | {"score": scores[0]}
    if fields == ("documents",):
        return row | {"scores": scores}
    positives = len(row["pos"])
    return row | {"pos_scores": scores[:positives], "neg_scores": scores[positives:]}


def _sha256_of_files(paths: Sequence[Path]) -> str:
    """Of what each holds, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
