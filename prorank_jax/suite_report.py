"""The tables of an evaluation: figures by collection with their averages, and how far models differ.

report.md, report.tex, report.html     the tables, each with its protocol
<collection>-<split>.<metric>.tsv      the figures of each query, and their differences
summary.json                           all figures
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prorank_jax.atomic import write_atomically, writing
from prorank_jax.evaluate import Summary, per_query_table, read_per_query
from prorank_jax.evaluation.averages import averages
from prorank_jax.evaluation.folder import GO_ON, make
from prorank_jax.evaluation.significance import Comparison, compare
from prorank_jax.suite import FIRST_STAGE, Job, System
from prorank_jax.tables import Cell, Table, best, html, latex, markdown

ORACLE = "oracle"
ALPHA = 0.05
"""Of what is marked as a difference."""
DAGGER = "†"
_TITLES = {"ndcg": "nDCG", "map": "MAP", "mrr": "MRR", "recall": "recall", "precision": "precision"}
PROTOCOL = {
    "first_stage": "first stage",
    "depth": "depth",
    "max_length": "tokens of a prompt",
    "dtype": "dtype",
    "instruction": "instruction",
}
_OF_COLLECTION = ("first_stage", "depth", "instruction")
RULES = (
    "Ties are broken by first-stage rank; a document whose id is the query's is left out; judged queries without "
    "candidates count 0."
)
COMPARED = (
    "their mean with its 95% confidence interval, the queries that are better, worse and equal, and two-sided paired "
    "tests (randomisation and t-test), also with Holm's correction over the comparisons of a collection."
)
"""What the rows of a table of comparisons are."""


def write_report(systems: Sequence[System], jobs: Sequence[Job], metrics: Sequence[str], out: Path) -> str:
    """Writes the files above.

    Args:
      metrics: a table each; models are compared by the first.

    Returns:
      the first table, as Markdown.

    Raises:
      InputError: `out` cannot be written.
    """
    values = {job.slug: _values(systems, job, metrics[0]) for job in jobs}
    compared = {slug: compare(of_job) for slug, of_job in values.items()}
    tables = [_figures(systems, jobs, metric, compared if metric == metrics[0] else {}) for metric in metrics]
    shown = [*tables, *_comparisons(jobs, compared, metrics[0])]
    make(out)
    with writing(out, GO_ON):
        write_atomically(out / "report.md", "\n".join(map(markdown, shown)))
        write_atomically(out / "report.tex", "\n".join(map(latex, shown)))
        write_atomically(out / "report.html", html(*shown))
        for job in jobs:
            of_queries = _per_query(job, values[job.slug], compared[job.slug])
            write_atomically(out / f"{job.slug}.{metrics[0]}.tsv", of_queries)
        summary = _summary(systems, jobs, metrics, compared)
        write_atomically(out / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    return markdown(tables[0])


def metric_title(metric: str) -> str:
    """`nDCG@10` of `ndcg@10`."""
    name, at, cutoff = metric.partition("@")
    return f"{_TITLES.get(name, name)}{at}{cutoff}"


def _figures(
    systems: Sequence[System], jobs: Sequence[Job], metric: str, compared: Mapping[str, Sequence[Comparison]]
) -> Table:
    """Collections and their averages by system; a dagger marks what differs from the first stage."""
    columns = {FIRST_STAGE: {job.slug: _of_job(systems, job)["first_stage"][metric] for job in jobs}}
    for system in systems:
        columns[system.label] = {slug: summary["metrics"][metric] for slug, summary in system.summaries.items()}
    highest = {(row, label) for label, row in best(_with_averages(columns, jobs))} if len(columns) > 1 else set()
    if metric == "ndcg@10":
        columns[ORACLE] = {job.slug: _of_job(systems, job)["oracle"][metric] for job in jobs}
    shown = _with_averages(columns, jobs)
    over = averages({_name(job, jobs): columns[FIRST_STAGE][job.slug] for job in jobs})
    notes = [f"{_average(name)}: over {', '.join(found.over)}." for name, found in over.items()]
    notes += [
        _weights(system) for system in systems if any("fusion" in of["protocol"] for of in system.summaries.values())
    ]
    marks = {
        (slug, one.run): DAGGER
        for slug, of_job in compared.items()
        for one in of_job
        if one.baseline == FIRST_STAGE and one.randomisation < ALPHA
    }
    if marks:
        notes.insert(0, f"{DAGGER} differs from the first stage, p < {ALPHA} (see the table of comparisons).")
    rows = {row: {label: shown[label].get(row) for label in shown} for row in shown[FIRST_STAGE]}
    return Table(
        caption=f"{metric_title(metric)} by collection. {_protocol(systems, jobs)}",
        corner="collection",
        rows=rows,
        marks=marks,
        bold=highest,
        rules=[row for row in rows if row not in columns[FIRST_STAGE]][:1],
        notes=notes,
    )


def _weights(system: System) -> str:
    """How a fusion was tuned."""
    told = []
    for slug, summary in system.summaries.items():
        fusion = summary["protocol"]["fusion"]
        told.append(f"{slug} {fusion['first_stage']:g} + {fusion['reranker']:g} (tuned on {fusion['tuned_on']})")
    return f"{system.label}: weights of the first stage and the model, by collection: {', '.join(told)}."


def _with_averages(columns: Mapping[str, Mapping[str, float]], jobs: Sequence[Job]) -> dict[str, dict[str, float]]:
    """Each system's figures, and their averages behind them."""
    found = {}
    for label, figures in columns.items():
        named = {_name(job, jobs): figures[job.slug] for job in jobs if job.slug in figures}
        found[label] = dict(figures) | {_average(name): one.value for name, one in averages(named).items()}
    return found


def _name(job: Job, jobs: Sequence[Job]) -> str:
    """The collection's name, with the split where several of its splits are there."""
    alike = [other for other in jobs if other.collection.name == job.collection.name]
    return job.collection.name if len(alike) == 1 else job.slug


def _average(name: str) -> str:
    return f"average of {name}"


def _comparisons(jobs: Sequence[Job], compared: Mapping[str, Sequence[Comparison]], metric: str) -> Iterator[Table]:
    rows: dict[str, dict[str, Cell]] = {
        f"{job.slug}: {one.run} - {one.baseline}": {
            "difference": one.difference,
            "95% from": one.interval and one.interval[0],
            "to": one.interval and one.interval[1],
            "better": one.wins,
            "worse": one.losses,
            "equal": one.ties,
            "p (randomisation)": p_value(one.raw_randomisation),
            "corrected": p_value(one.randomisation),
            "p (t-test)": p_value(one.raw_t_test),
            "corrected (t-test)": p_value(one.t_test),
        }
        for job in jobs
        for one in compared[job.slug]
    }
    if rows:
        yield Table(
            caption=f"Differences of {metric_title(metric)} by query: {COMPARED}",
            corner="collection: one - other",
            rows=rows,
        )


def p_value(value: float) -> Cell:
    """A p-value as tables show it."""
    return value if value >= 1e-4 else "< 0.0001"


def _values(systems: Sequence[System], job: Job, metric: str) -> dict[str, np.ndarray]:
    """Each system's figures of the queries of a collection, the first stage's among them."""
    folders = {system.label: system.folders[job.slug] for system in systems if job.slug in system.folders}
    values = {FIRST_STAGE: read_per_query(next(iter(folders.values())), metric, first_stage=True)}
    values |= {label: read_per_query(folder, metric) for label, folder in folders.items()}
    return values


def _per_query(job: Job, values: Mapping[str, np.ndarray], compared: Sequence[Comparison]) -> str:
    """Queries with the figures of all systems, and their differences."""
    differences = {f"{one.run} - {one.baseline}": values[one.run] - values[one.baseline] for one in compared}
    return per_query_table(job.collection.qrels, dict(values) | differences)


def _protocol(systems: Sequence[System], jobs: Sequence[Job]) -> str:
    """What the figures are of: what all have in common once, what differs by collection or model."""
    told = []
    for key, title in PROTOCOL.items():
        found: dict[str, list[str]] = {}
        for system in systems:
            for slug, summary in system.summaries.items():
                value = summary["protocol"].get(key)
                if value is not None:
                    place = slug if key in _OF_COLLECTION else system.label
                    found.setdefault(str(value), []).append(place)
        if len(found) == 1:
            told.append(f"{title}: {next(iter(found))}")
        elif found:
            told.append(
                f"{title}: " + ", ".join(f"{value} ({', '.join(dict.fromkeys(of))})" for value, of in found.items())
            )
    queries = ", ".join(f"{job.slug} {len(job.collection.queries)}" for job in jobs)
    return f"Protocol: {'; '.join([*told, f'queries: {queries}'])}. {RULES}"


def _summary(
    systems: Sequence[System],
    jobs: Sequence[Job],
    metrics: Sequence[str],
    compared: Mapping[str, Sequence[Comparison]],
) -> dict[str, Any]:
    columns = {
        metric: _with_averages(
            {one.label: {s: f["metrics"][metric] for s, f in one.summaries.items()} for one in systems}, jobs
        )
        for metric in metrics
    }
    return {
        "figures": {one.label: one.summaries for one in systems},
        "averages": {
            metric: {
                label: {row: value for row, value in figures.items() if row.startswith(_average(""))}
                for label, figures in of_metric.items()
            }
            for metric, of_metric in columns.items()
        },
        "comparisons": {slug: [one._asdict() for one in of_job] for slug, of_job in compared.items()},
    }


def _of_job(systems: Sequence[System], job: Job) -> Summary:
    """Any system's figures of a collection: what they say of its first stage is the same."""
    return next(system.summaries[job.slug] for system in systems if job.slug in system.summaries)
