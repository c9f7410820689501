"""Which collections a suite has: BEIR's public ones, NanoBEIR's, or those that a YAML file lists.

collections:
  - beir/scifact
  - data: ../collections/mine      # a BEIR folder or zip
    split: dev
    first_stage: runs/splade.{collection}.{split}.trec
    depth: 50
    instruction: Find papers that support the claim.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from prorank_jax.config import Positive, Section
from prorank_jax.config_file import parse_section, read_mapping
from prorank_jax.data.published import NANO_BEIR
from prorank_jax.errors import InputError
from prorank_jax.evaluation.averages import BEIR_13, FORUMS
from prorank_jax.storage import fetched


class CollectionConfig(Section):
    """A collection of a suite."""

    data: str
    """A name as beir/scifact, a BEIR folder or a zip of one; a relative path is taken from the working directory."""
    split: str = "test"
    """Whose queries and judgements."""
    first_stage: str | None = None
    """`bm25`, or a run; default: what the command line says."""
    depth: Positive | None = None
    """Candidates per query; default: what the command line says."""
    instruction: str | None = None
    """The task, in place of the prompt's own; default: what the command line says."""


def _with_data(entry: Any) -> Any:
    return {"data": entry} if isinstance(entry, str) else entry


class SuiteConfig(Section):
    """The collections of a suite, in the order of its tables."""

    collections: Annotated[tuple[Annotated[CollectionConfig, BeforeValidator(_with_data)], ...], Field(min_length=1)]


def _suite(names: Iterable[str]) -> SuiteConfig:
    return SuiteConfig(collections=tuple(CollectionConfig(data=name) for name in names))


BUILTIN = {
    "beir": _suite([*BEIR_13, *FORUMS]),
    "nano-beir": _suite(NANO_BEIR),
}
"""BEIR's 14 public collections but MS MARCO, which models are trained on; and the 13 of NanoBEIR."""


def one_collection(data: str, split: str) -> SuiteConfig:
    """A collection by itself."""
    return SuiteConfig(collections=(CollectionConfig(data=data, split=split),))


def load_suite(name: str) -> SuiteConfig:
    """The suite of that name, or of a YAML file.

    Raises:
      InputError: there is no such suite or file, or a field of the file is wrong.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    if not Path(fetched(name)).is_file():
        raise InputError(f"--suite={name!r}: no such suite or file; use {', '.join(BUILTIN)}, or a YAML file")
    return parse_section(SuiteConfig, read_mapping(name), source=name)
