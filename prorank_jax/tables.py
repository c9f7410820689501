"""Tables of results as Markdown, LaTeX and HTML: one grid of texts, so that no figure differs between them."""

import html as markup
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

Cell = float | str | None
Rows = Mapping[str, Mapping[str, Cell]]

_DASH = "—"


@dataclass(frozen=True)
class Table:
    """Figures, and what they are figures of.

    Raises:
      ValueError: a column, mark, bold cell or rule names what the table does not have.
    """

    caption: str
    """What the figures are, with their protocol."""
    corner: str
    """The heading over the row names."""
    rows: Rows
    """Row name -> column name -> number, text or None. A cell that is missing, None or not finite is a dash."""
    columns: Sequence[str] = ()
    """Their order; as they first appear in `rows` where empty."""
    marks: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(row, column) -> what stands behind the figure, for example a dagger that a note explains."""
    bold: Collection[tuple[str, str]] = frozenset()
    """The (row, column) of figures that stand out; see `best`."""
    rules: Collection[str] = frozenset()
    """Rows that a rule stands above, for example the first of the averages. Markdown has no rules."""
    notes: Sequence[str] = ()
    """Lines below the table."""

    def __post_init__(self) -> None:
        if not self.columns:
            columns = tuple(dict.fromkeys(column for cells in self.rows.values() for column in cells))
            object.__setattr__(self, "columns", columns)
        known = {(row, column) for row in self.rows for column in self.columns}
        named = {(row, column) for row, cells in self.rows.items() for column in cells} | {*self.marks, *self.bold}
        wrong = [*sorted(named - known), *sorted({*self.rules} - {*self.rows})]
        if wrong:
            raise ValueError(f"the table has no {wrong[0]!r}; rows {list(self.rows)}, columns {list(self.columns)}")


def best(rows: Rows) -> frozenset[tuple[str, str]]:
    """The (row, column) of each column's highest number; of several, where they are printed alike."""
    highest: dict[str, float] = {}
    numbers = [
        (row, column, value)
        for row, cells in rows.items()
        for column, value in cells.items()
        if not isinstance(value, str) and _text(value) != _DASH and value is not None
    ]
    for _, column, value in numbers:
        highest[column] = max(highest.get(column, -math.inf), value)
    return frozenset((row, column) for row, column, value in numbers if _text(value) == _text(highest[column]))


def markdown_table(rows: Rows, corner: str = "") -> str:
    """A Markdown table, padded so that it also reads well as plain text.

    Args:
      rows: row name -> column name -> number, text or None. Columns stand in the order in which they first
        appear; a cell that is missing, None or not a number is a dash.
      corner: the heading over the row names.

        {"bm25": {"ndcg@10": 0.31}, "base": {"accuracy": 0.5, "ndcg@10": None}} ->
        |      | ndcg@10 | accuracy |
        |:-----|--------:|---------:|
        | bm25 |  0.3100 |        — |
        | base |       — |   0.5000 |
    """
    return _padded(Table("", corner, rows))


def markdown(table: Table) -> str:
    """The table in Markdown, its caption above and its notes below."""
    parts = [_one_line(table.caption), _padded(table), *map(_one_line, table.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(table: Table) -> str:
    """The table in LaTeX, a `table` environment that needs the package booktabs; all text is escaped."""

    def shown(text: str, bold: bool) -> str:
        minus = re.sub(r"^-(?=[0-9])", "$-$", text)
        return rf"\textbf{{{minus}}}" if bold else minus

    heading, *lines = _grid(table, _tex, shown, lambda mark: rf"\textsuperscript{{{_tex(mark)}}}")
    body = []
    for name, cells in zip(table.rows, lines, strict=True):
        body += [r"\midrule"] * (name in table.rules) + [" & ".join(cells) + r" \\"]
    inner = [r"\toprule", " & ".join(heading) + r" \\", r"\midrule", *body, r"\bottomrule"]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_tex(table.caption)}}}",
            rf"  \begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            *("    " + line for line in inner),
            r"  \end{tabular}",
            *(rf"  \par\footnotesize {_tex(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


def html(*tables: Table) -> str:
    """A page of HTML that needs no other file, entitled with the first sentence of the first caption."""
    title = markup.escape(_one_line(tables[0].caption).partition(". ")[0]) if tables else ""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{title}</title>",
            f"<style>\n{_STYLE}\n</style>",
            "</head>",
            "<body>",
            *map(html_table, tables),
            "</body>",
            "</html>",
            "",
        ]
    )


_STYLE = """\
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem; }
.table { margin-bottom: 2.5rem; overflow-x: auto; }
table { border-collapse: collapse; border-bottom: 2px solid; font-variant-numeric: tabular-nums; }
caption { margin-bottom: 0.5rem; text-align: left; }
th, td { padding: 0.2rem 0.7rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; }
tbody th { font-weight: normal; }
thead { border-top: 2px solid; }
tbody { border-top: 1px solid; }
.note { font-size: 0.875rem; margin: 0.3rem 0; }"""


def html_table(table: Table) -> str:
    """One table as a part of a page, with classes `table` and `note` for its style; all text is escaped."""

    def shown(text: str, bold: bool) -> str:
        return f"<strong>{text}</strong>" if bold else text

    heading, *grid = _grid(table, markup.escape, shown, lambda mark: f"<sup>{markup.escape(mark)}</sup>")
    body = ["<tbody>"]
    for position, (name, (first, *rest)) in enumerate(zip(table.rows, grid, strict=True)):
        body += ["</tbody>", "<tbody>"] * (name in table.rules and position > 0)
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    lines = [
        '<div class="table">',
        "<table>",
        f"<caption>{markup.escape(_one_line(table.caption))}</caption>",
        "<thead>",
        "<tr>" + "".join(f'<th scope="col">{name}</th>' for name in heading) + "</tr>",
        "</thead>",
        *body,
        "</tbody>",
        "</table>",
        *(f'<p class="note">{markup.escape(_one_line(note))}</p>' for note in table.notes),
        "</div>",
    ]
    return "\n".join(lines)


def _padded(table: Table) -> str:
    """The grid in Markdown, its columns of one width."""
    grid = _grid(table, _piped, lambda text, bold: f"**{text}**" if bold else text, _piped)
    first, *rest = (max(map(len, column)) for column in zip(*grid, strict=True))
    lines = [
        "| " + " | ".join([name.ljust(first), *(c.rjust(w) for c, w in zip(cells, rest, strict=True))]) + " |"
        for name, *cells in grid
    ]
    rule = "|:" + "-" * (first + 1) + "|" + "".join("-" * (width + 1) + ":|" for width in rest)
    return "\n".join([lines[0], rule, *lines[1:]])


def _grid(
    table: Table, escaped: Callable[[str], str], shown: Callable[[str, bool], str], mark: Callable[[str], str]
) -> list[list[str]]:
    """The heading and the rows, each a row name and its cells, as one format writes them.

    Args:
      escaped: makes text of what has a meaning in the format.
      shown: an escaped figure and whether it is bold -> how it is written.
      mark: the same for a mark, which is not escaped yet.
    """
    grid = [[escaped(table.corner), *map(escaped, table.columns)]]
    for row, cells in table.rows.items():
        grid.append([escaped(row)])
        for column in table.columns:
            text = shown(escaped(_text(cells.get(column))), (row, column) in table.bold)
            grid[-1].append(text + (mark(table.marks[row, column]) if (row, column) in table.marks else ""))
    return grid


def _text(value: Cell) -> str:
    """Four digits: a metric keeps four decimals, so that its column lines up; a larger number has fewer."""
    if value is None:
        return _DASH
    if isinstance(value, str | int):
        return str(value)
    if not math.isfinite(value):
        return _DASH
    if abs(value) < 10:
        return f"{value:z.4f}"
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _piped(text: str) -> str:
    """A backslash in front of what would end a cell, and in front of backslashes that stand there."""
    return re.sub(r"(\\*)\|", r"\1\1\\|", _one_line(text))


_TEX = {
    "\\": r"\textbackslash{}",
    **{sign: "\\" + sign for sign in "{}$&#_%"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # Behind the end of a row these two would belong to it.
    "[": "{[}",
    "*": "{*}",
    # Matched in front of another one only: two in a row are a dash.
    "-": "-{}",
    _DASH: "---",
    "–": "--",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "→": r"$\rightarrow$",
    "Δ": r"$\Delta$",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
}
_TEX_SIGNS = re.compile("-(?=-)|" + "|".join(re.escape(sign) for sign in _TEX if sign != "-"))


def _tex(text: str) -> str:
    """Text as LaTeX sets it; signs that are not in its usual fonts stay as they are."""
    return _TEX_SIGNS.sub(lambda found: _TEX[found[0]], _one_line(text))
