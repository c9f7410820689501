"""The sources of a configuration: the training data itself, and what is mixed with it."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from prorank_jax.config import GAINS, DataConfig, Loss, SourceConfig
from prorank_jax.data.candidates import open_candidates
from prorank_jax.data.collections import is_collection, open_collection
from prorank_jax.data.examples import JudgedSource, Selection, Source
from prorank_jax.data.prepare import prepare
from prorank_jax.data.prepared import ABOUT, RowSource, open_prepared
from prorank_jax.errors import InputError
from prorank_jax.storage import fetched

_OF_COLLECTIONS = ("split", "candidates", "depth", "relevant_from", "found_only")


class Mixture(NamedTuple):
    """Sources and the weights that they are mixed by."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]
    instructions: tuple[str, ...]
    """The longest of each source that has any: what a prompt must have room for."""


def open_mixture(config: DataConfig, cache: Path, *, single: bool = False, losses: Iterable[Loss] = ()) -> Mixture:
    """Opens every source; files of rows are prepared first, where they are not yet.

    Args:
      cache: where prepared files lie, unless `data.cache` names a folder.
      single: the documents of rows are learnt from one at a time (`score.documents_per_query=1`).
      losses: those that will learn the targets.

    Raises:
      InputError: a source cannot be read, or is set up for another kind of data.
    """
    cache = cache if config.cache is None else Path(config.cache)
    places = {"data": config, **{f"data.mix.{number}": source for number, source in enumerate(config.mix)}}
    sources = [_open(place, source, cache, single) for place, source in places.items()]
    of_gains = next((loss for loss in losses if loss in GAINS), None)
    for (place, source_config), source in zip(places.items(), sources, strict=True):
        if of_gains and source_config.target == "label" and isinstance(source, RowSource):
            if (lowest := source.prepared.lowest_label) < 0:
                raise InputError(
                    f"config: {place}.path={source_config.path}: has labels below 0 (the lowest is {lowest:g}), and "
                    f"score.loss.{of_gains} learns labels of 0 or more; use mse, margin_mse, ranknet or list_mle"
                )
    found = [source.prepared.longest_instruction for source in sources if isinstance(source, RowSource)]
    weights = tuple(source.weight for source in places.values())
    return Mixture(tuple(sources), weights, tuple(text for text in found if text is not None))


def _open(place: str, config: SourceConfig, cache: Path, single: bool) -> JudgedSource | RowSource:
    source = fetched(config.path)
    collection, prepared_before = is_collection(source), (Path(source) / ABOUT).exists()
    if config.fields and (collection or prepared_before):
        kind = "a collection" if collection else "prepared already"
        raise InputError(f"config: {place}.fields: is for files of rows, and {config.path} is {kind}; leave it out")
    if collection:
        return _open_judged(place, config, source)
    for field, value in config.model_dump(include=set(_OF_COLLECTIONS)).items():
        if value != SourceConfig.model_fields[field].default:
            raise InputError(
                f"config: {place}.{field}={value}: is for collections, and {config.path} is none; leave it out"
            )
    if prepared_before:
        prepared = open_prepared(Path(source))
        if prepared.single != single:
            made, asked = ("1", "2 or more") if prepared.single else ("2 or more", "1")
            raise InputError(
                f"config: {place}.path={config.path}: was prepared for score.documents_per_query of {made}, "
                f"and the stage asks for {asked}; give the files that it was prepared from"
            )
        if prepared.without_positive and config.target == "label" and not single:
            raise InputError(
                f"config: {place}.target=label: {prepared.without_positive} groups of {config.path} have no relevant "
                "document, as it was prepared for scores; give the files that it was prepared from"
            )
    else:
        positives_only = config.target == "label" and not single
        out = cache / _folder_name(config.path, single, positives_only, config.fields)
        prepared = prepare(source, out, single=single, positives_only=positives_only, fields=config.fields)
    return RowSource(prepared, config.target, config.path, config.random_negatives)


def _open_judged(place: str, config: SourceConfig, source: str | Path) -> JudgedSource:
    if config.target != "label":
        raise InputError(
            f"config: {place}.target={config.target}: {config.path} is a collection, which has judgements and no "
            "scores; use target=label"
        )
    collection = open_collection(source, config.split)
    found = open_candidates(collection, config.candidates, config.depth, show_progress=True)
    return JudgedSource.from_collection(
        collection, found, Selection(config.relevant_from, config.found_only, config.random_negatives)
    )


def _folder_name(path: str, single: bool, positives_only: bool, fields: Mapping[str, str]) -> str:
    """A name that shows the path, and differs where the path or the way of preparing does."""
    shown = re.sub(r"[^A-Za-z0-9]+", "-", path).strip("-")[-40:]
    way = [single, positives_only, *([dict(fields)] if fields else [])]
    key = json.dumps([path if "://" in path else os.path.abspath(path), *way])
    return f"{shown}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
