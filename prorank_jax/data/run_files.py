"""Run files, entry by entry. The name's ending says which reader takes a file.

.json              ranx, mteb, FlagEmbedding, rank_llm, rows of a table   run_objects.py, run_nested.py
.jsonl             rank_llm, rows of a table
.lz4               ranx
.parquet, .parq    ranx, PyTerrier and other tables of named columns     run_tables.py
anything else      lines of TREC, ColBERT, MS MARCO or Tevatron, or a table whose first line names the columns

All but .lz4 and Parquet may be packed, with .gz at the end of the name.
"""

from collections.abc import Iterator
from pathlib import Path

from prorank_jax.data.run_entries import Entry
from prorank_jax.data.run_objects import read_json, read_json_lines, read_lz4
from prorank_jax.data.run_tables import read_parquet, read_text


def entries(path: Path, split: str | None = None) -> Iterator[Entry]:
    """The entries of a run file, in its order.

    Args:
      split: whose entries to read of a file that has several (mteb's predictions).

    Raises:
      InputError: the file is missing or malformed, or a score is not finite; with the line, row or query.
    """
    name = path.name.removesuffix(".gz")
    if name.endswith(".json"):
        return read_json(path, split)
    if name.endswith(".jsonl"):
        return read_json_lines(path, split)
    if path.name.endswith(".lz4"):
        return read_lz4(path, split)
    if path.name.endswith((".parquet", ".parq")):
        return read_parquet(path)
    return read_text(path)
