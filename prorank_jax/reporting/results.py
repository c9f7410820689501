"""What a run was worth, as tables: before and after, with the protocol and what is more than chance."""

from collections.abc import Mapping
from typing import Any

from prorank_jax.config import DevConfig, ScoreConfig, WarmupDevConfig, WarmupStageConfig
from prorank_jax.evaluation.development import METRIC
from prorank_jax.evaluation.significance import Comparison, compare
from prorank_jax.reporting.curves import TITLES
from prorank_jax.reporting.evaluations import FIRST_STAGE, Evaluated
from prorank_jax.reporting.folder import RunFiles
from prorank_jax.runtime.metrics import Row
from prorank_jax.suite_report import ALPHA, COMPARED, DAGGER, PROTOCOL, RULES, metric_title, p_value
from prorank_jax.tables import Cell, Table, best

_ANSWERS = {"format_rate": "format rate", "accuracy": "accuracy"}


def figures(evaluated: Evaluated, answers: Mapping[str, Mapping[str, float]]) -> tuple[Table, Table]:
    """The measures of all models on a collection, and how far they differ by the first measure.

    Args:
      answers: folder of a model under `evaluation/` -> format rate and accuracy, where they were probed.
    """
    metric = evaluated.metrics[0]
    compared = compare(evaluated.columns(metric))
    rows: dict[str, dict[str, Cell]] = {}
    for name in evaluated.metrics:
        for label, values in evaluated.columns(name).items():
            rows.setdefault(label, {})[metric_title(name)] = float(values.mean())
    # Reranking never changes the recall of all candidates: where all are best, none is.
    highest = best(rows)
    told_apart = {column for row in rows for column in rows[row] if (row, column) not in highest}
    for system in evaluated.systems:
        probed = answers.get(system.folder.name, {})
        rows[system.label] |= {title: probed[name] for name, title in _ANSWERS.items() if name in probed}
    marks = {
        (one.run, metric_title(metric)): DAGGER
        for one in compared
        if one.baseline == FIRST_STAGE and one.randomisation < ALPHA
    }
    table = Table(
        caption=f"{evaluated.name}, {len(evaluated.queries)} queries. {_protocol(evaluated)}",
        corner="ranking",
        rows=rows,
        marks=marks,
        bold={place for place in highest if place[1] in told_apart},
        notes=_notes(evaluated, bool(marks), rows),
    )
    return table, _differences(metric, compared)


def _differences(metric: str, compared: list[Comparison]) -> Table:
    return Table(
        caption=f"Differences of {metric_title(metric)} by query: {COMPARED}",
        corner="one − other",
        rows={f"{one.run} − {one.baseline}": _comparison(one) for one in compared},
    )


def _comparison(one: Comparison) -> dict[str, Cell]:
    """The cells of a comparison, few enough for a page."""
    return {
        "difference": one.difference,
        "95% interval": one.interval and f"{one.interval[0]:z.4f} to {one.interval[1]:z.4f}",
        "better / worse / equal": f"{one.wins} / {one.losses} / {one.ties}",
        "p (randomisation)": p_value(one.raw_randomisation),
        "corrected": p_value(one.randomisation),
        "p (t‑test)": p_value(one.raw_t_test),
        "corrected (t‑test)": p_value(one.t_test),
    }


def _protocol(evaluated: Evaluated) -> str:
    protocol: Mapping[str, Any] = evaluated.systems[-1].summary["protocol"]
    told = [f"{title}: {value}" for key, title in PROTOCOL.items() if (value := protocol.get(key)) is not None]
    return f"Protocol: {'; '.join(told)}. {RULES}"


def _notes(evaluated: Evaluated, marked: bool, rows: Mapping[str, Mapping[str, Cell]]) -> list[str]:
    notes = []
    if marked:
        notes.append(f"{DAGGER} differs from the first stage, p < {ALPHA} (randomisation test, Holm's correction).")
    oracle = evaluated.systems[-1].summary.get("oracle", {})
    if isinstance(value := oracle.get("ndcg@10"), float):
        notes.append(f"The best order of these candidates would reach an nDCG@10 of {value:.4f}.")
    if any(title in cells for cells in rows.values() for title in _ANSWERS.values()):
        notes.append(
            "Format rate and accuracy are of sampled answers to the relevance prompt; score learning does not sample."
        )
    return notes


def held_out(run: RunFiles) -> list[Table]:
    """What held-out queries measured of each stage while it continued; nothing of a stage without any."""
    tables = []
    for stage, best_by in _CHOSEN_BY.items():
        config: ScoreConfig | WarmupStageConfig | None = getattr(run.config, stage)
        dev = config.dev if config else None
        measured = [row for row in run.stages[stage].metrics if row.get(best_by) is not None] if dev else []
        if dev is None or not measured:
            continue
        highest = max(measured, key=lambda row: float(row[best_by]))
        rows: dict[str, dict[str, Cell]] = {}
        if measured[0]["step"] == 0:
            rows[f"before {TITLES[stage].lower()}"] = _cells(measured[0])
        rows[f"best model, step {highest['step']}"] = _cells(highest)
        if measured[-1]["step"] != highest["step"]:
            rows[f"last model, step {measured[-1]['step']}"] = _cells(measured[-1])
        chosen = "These figures" if best_by == METRIC else f"The {_HELD_OUT[best_by]}"
        tables.append(
            Table(
                caption=f"Held-out queries, on which {TITLES[stage].lower()} was measured. {_dev_protocol(run, dev)}",
                corner="model" if stage == "warmup" else "ranking",
                rows=rows,
                notes=[f"{chosen} chose the best model, which flatters it; there is no test of them."],
            )
        )
    return tables


_CHOSEN_BY = {"warmup": "dev/accuracy", "score": METRIC}
"""Stage -> what its best model is chosen by."""
_HELD_OUT = {
    "dev/accuracy": "accuracy",
    "dev/format_rate": "format rate",
    "dev/positive_rate": "share of 1",
    "dev/auc": "AUC",
    METRIC: "nDCG@10",
}


def _cells(row: Row) -> dict[str, Cell]:
    return {title: float(row[metric]) for metric, title in _HELD_OUT.items() if row.get(metric) is not None}


def _dev_protocol(run: RunFiles, dev: DevConfig) -> str:
    queries = "all queries" if dev.queries is None else f"at most {dev.queries} queries"
    protocol = f"{queries} of the split {dev.split}; first stage: {dev.candidates}; depth: {dev.depth}"
    if isinstance(dev, WarmupDevConfig):
        protocol += f"; {dev.pairs} prompts, half of them relevant (judged {dev.relevant_from} or higher)"
    return f"Protocol: {protocol}; tokens of a prompt: {run.config.prompt.max_length}. {RULES}"
