"""Averages over collections as the field reports them: CQADupStack's forums as one collection, named sets of BEIR.

BEIR (arXiv 2104.08663) has 18 collections besides MS MARCO, of which four are not public. Papers average over all 18,
over the 14 public ones, or over 13, without CQADupStack; the average over the forums of CQADupStack counts as one.
"""

from collections.abc import Mapping
from typing import NamedTuple

from prorank_jax.data.published import BEIR, NANO_BEIR

CQADUPSTACK = "cqadupstack"
FORUMS = tuple(name for name in BEIR if name.startswith(f"beir/{CQADUPSTACK}/"))
BEIR_13 = tuple(name for name in BEIR if name not in (*FORUMS, "beir/msmarco"))
BEIR_14 = (*BEIR_13, f"beir/{CQADUPSTACK}")
BEIR_18 = (*BEIR_14, *(f"beir/{name}" for name in ("bioasq", "signal1m", "trec-news", "robust04")))
NAMED = {"BEIR-13": BEIR_13, "BEIR-14": BEIR_14, "BEIR-18": BEIR_18, "NanoBEIR": tuple(NANO_BEIR)}


class Average(NamedTuple):
    """A mean over collections."""

    value: float
    over: tuple[str, ...]
    """The collections, CQADupStack's forums where it is theirs."""


def averages(figures: Mapping[str, float]) -> dict[str, Average]:
    """The averages that a set of collections has, by name.

    CQADupStack's where all twelve forums are there; each named set where all of its collections are there, whatever
    else is; and one over all collections, where there are two or more and no named set is just these.

    Args:
      figures: name of a collection -> figure. A folder `scifact` counts as `beir/scifact`, so that the collections that
        are not public have their place too.
    """
    of_beir = {name: f"beir/{name}" for name in figures if f"beir/{name}" in BEIR_18 and f"beir/{name}" not in figures}
    figures = {of_beir.get(name, name): value for name, value in figures.items()}
    found: dict[str, Average] = {}
    merged = dict(figures)
    if figures.keys() >= set(FORUMS):
        found["CQADupStack"] = _average(figures, FORUMS)
        merged = {name: value for name, value in figures.items() if name not in FORUMS}
        merged[f"beir/{CQADUPSTACK}"] = found["CQADupStack"].value
    found |= {title: _average(merged, names) for title, names in NAMED.items() if merged.keys() >= set(names)}
    if len(merged) > 1 and not any(merged.keys() == set(names) for names in NAMED.values()):
        found[f"all {len(merged)}"] = _average(merged, tuple(merged))
    return found


def _average(figures: Mapping[str, float], names: tuple[str, ...]) -> Average:
    return Average(sum(figures[name] for name in names) / len(names), names)
