"""The report of a run: one page of HTML that loads nothing and needs no script.

It shows what was run, the curves of both stages, the figures before and after with their protocol and their tests, the
queries that changed most with their texts, scores by label, and answers over time. What a text says is shown as text.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from prorank_jax import __version__
from prorank_jax.atomic import writing
from prorank_jax.progress import visible
from prorank_jax.reporting import charts
from prorank_jax.reporting.charts import Chart, line_chart
from prorank_jax.reporting.curves import PANELS, TITLES, points_of
from prorank_jax.reporting.evaluations import Evaluated, find_evaluations
from prorank_jax.reporting.facts import about, duration, seconds_taken
from prorank_jax.reporting.folder import RunFiles, read_run
from prorank_jax.reporting.queries import changes, open_texts
from prorank_jax.reporting.results import figures, held_out
from prorank_jax.reporting.samples import Scores, asked, scores
from prorank_jax.storage import Place, write_text
from prorank_jax.suite_report import metric_title
from prorank_jax.tables import Table, html_table

FILE_NAME = "report.html"
_TEMPLATE = "page.html.jinja"
_COLLECTIONS = 24
"""Collections whose queries are shown, in the order of their names."""


class Headline(NamedTuple):
    """A figure at the top of the page, before and after."""

    what: str
    before: str | None
    after: str
    note: str


def write_report(run: Place, out: Place | None = None, data: Sequence[str] = ()) -> Place:
    """Writes the report of a run folder.

    Args:
      out: the file; default: `report.html` in the run folder.
      data: collections that texts are read from, besides those of the configuration.

    Returns:
      where it was written.

    Raises:
      InputError: `run` is no run folder, has no metrics yet or is damaged, `data` cannot be read, or `out` cannot be
        written.
    """
    page = _page(read_run(run), data)
    target = run / FILE_NAME if out is None else out
    with writing(target, "name a file elsewhere with --out"):
        write_text(target, page)
    return target


def _page(run: RunFiles, data: Sequence[str]) -> str:
    evaluations = find_evaluations(run.folder)
    texts = open_texts(run, evaluations, data)
    answers = run.summary.get("rows", {})
    sampled = scores(run.stages)
    return str(
        _environment()
        .get_template(_TEMPLATE)
        .render(
            name=run.name,
            version=__version__,
            about=about(run),
            headlines=_headlines(run, evaluations, sampled),
            curves={TITLES[stage]: _curves(run, stage) for stage in run.stages},
            tables=[(one.name, *figures(one, answers)) for one in evaluations],
            held_out=held_out(run),
            changes=[changes(one, texts.get(one.name)) for one in evaluations[:_COLLECTIONS]],
            collections_left_out=len(evaluations[_COLLECTIONS:]),
            scores=sampled,
            asked=asked(run.stages["warmup"].completions) if "warmup" in run.stages else {},
            chart=charts,
        )
    )


def _headlines(run: RunFiles, evaluations: Sequence[Evaluated], sampled: Scores | None) -> list[Headline]:
    found = []
    for one in evaluations[:1]:
        before, *_, after = (f"{values.mean():.3f}" for values in one.columns(one.metrics[0]).values())
        what = metric_title(one.metrics[0])
        found.append(Headline(what, before, after, f"first stage → {one.systems[-1].label}, {one.name}"))
    if sampled and len(sampled.right) > 1:
        before, after = (f"{100 * sampled.right[end]:.0f}%" for end in (0, -1))
        found.append(Headline("relevant above irrelevant", before, after, f"in a sample of {sampled.of}"))
    rows = [row for row in run.stages["warmup"].metrics if "format_rate" in row] if "warmup" in run.stages else []
    if rows:
        before, after = (f"{100 * (rows[end]['format_rate'] or 0):.0f}%" for end in (0, -1))
        steps = f"step {rows[0]['step']} → step {rows[-1]['step']} of prompt warmup"
        found.append(Headline("answers in the right format", before, after, steps))
    found.append(
        Headline(
            "time taken", None, duration(seconds_taken(run)), "evaluation included" if run.summary else "both stages"
        )
    )
    return found


def _curves(run: RunFiles, stage: str) -> list[Chart]:
    rows = run.stages[stage].metrics
    drawn = []
    for panel in PANELS:
        curves = {label: points_of(rows, metric) for metric, label in panel.curves.items()}
        if panel.stage == stage and any(curves.values()):
            drawn.append(line_chart(panel.unit, {label: points for label, points in curves.items() if points}))
    return drawn


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("prorank_jax.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_readable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["table"] = _table
    return environment


def _readable(value: Any) -> Any:
    """Text as a page can show it: control characters, marks of direction and lone surrogates are spelled out."""
    # What has been escaped is marked by this method; what the table filter gives is spelled out there.
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(map(visible, value.split("\n")))


def _table(table: Table) -> str:
    """A table as HTML, all text in it escaped and spelled out."""
    return "\n".join(map(visible, html_table(table).split("\n")))
