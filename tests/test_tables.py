"""Three formats of one table: each is parsed back, and none differs from the others."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from prorank_jax.tables import Cell, Table, best, html, latex, markdown, markdown_table

AWKWARD = r"a|b \| c\_d e\|f 100% & $x^2$ #1 {y} ~z <b>bold</b> --option *star* [1] — x ≥ 1"

ROWS: dict[str, dict[str, Cell]] = {
    "BM25": {"SciFact": 0.67891, "NFCorpus": 0.31766, "queries": 300},
    "ours": {"SciFact": 0.7412, "NFCorpus": None, "queries": 1200},
    AWKWARD: {"SciFact": 0.0, "NFCorpus": 123.456, "queries": "a|b"},
    "difference": {"SciFact": -0.01234, "NFCorpus": float("nan"), AWKWARD: 98765.4},
}
TABLE = Table(
    caption=f"nDCG@10, top 100 of BM25, {AWKWARD}",
    corner="model",
    rows=ROWS,
    marks={("ours", "SciFact"): "†", ("difference", "SciFact"): "&"},
    bold={("ours", "SciFact"), ("difference", "SciFact")},
    rules={"difference"},
    notes=["† p < 0.05, against BM25", AWKWARD],
)
# What a reader sees, mark and all.
GRID = [
    ["model", "SciFact", "NFCorpus", "queries", AWKWARD],
    ["BM25", "0.6789", "0.3177", "300", "—"],
    ["ours", "0.7412†", "—", "1200", "—"],
    [AWKWARD, "0.0000", "123.5", "a|b", "—"],
    ["difference", "-0.0123&", "—", "—", "98765"],
]


class Page(HTMLParser):
    """Rows of texts, captions and notes of a page whose elements are nested as they must be."""

    VOID = {"meta"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: dict[str, list[str]] = {}
        self.groups: list[int] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.VOID:
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "tbody":
            self.groups.append(len(self.rows))
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts[tag][-1] += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def markdown_cells(line: str) -> list[str]:
    """The cells of a line as GitHub splits it: a backslash protects the sign behind it."""
    cells = [cell.strip() for cell in re.findall(r"((?:\\.|[^\\|])*)\|", line.removeprefix("|"))]
    return [re.sub(r"(\\+)\|", lambda found: "\\" * (len(found[1]) // 2) + "|", cell) for cell in cells]


TEX_WORDS = {
    "textbackslash": "\\",
    "textasciicircum": "^",
    "textasciitilde": "~",
    "textless": "<",
    "textgreater": ">",
    "textbar": "|",
    "textdagger": "†",
    "geq": "≥",
}


def tex_text(source: str) -> str:
    """What LaTeX prints for text without commands of its own; refuses signs that have a meaning and are not escaped."""
    printed = ""
    position, depth = 0, 0
    while position < len(source):
        rest = source[position:]
        if word := re.match(r"\\([a-z]+)(\{\})?", rest, re.IGNORECASE):
            if word[1] not in ("textbf", "textsuperscript"):
                # A command without braces behind it eats the space that follows.
                assert word[2] or rest[word.end()] == "$", rest
                printed += TEX_WORDS[word[1]]
            position += word.end()
        elif rest[0] == "\\":
            assert rest[1] in "{}$&#_%", rest
            printed += rest[1]
            position += 2
        else:
            assert rest[0] not in "&#_%^~<>|", rest
            # In the first cell of a row these would belong to the end of the row above.
            assert rest[0] not in "[*" or source[position - 1] == "{", rest
            depth += {"{": 1, "}": -1}.get(rest[0], 0)
            assert depth >= 0
            dashes = re.match("-+", rest)
            if dashes:
                printed += {1: "-", 2: "–", 3: "—"}[len(dashes[0])]
            elif rest[0] not in "{}$":
                printed += rest[0]
            position += len(dashes[0]) if dashes else 1
    assert depth == 0
    return printed


def test_markdown_says_what_the_table_says() -> None:
    text = markdown(TABLE)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert re.fullmatch(r"\|:-+\|(-+:\|){4}", lines.pop(1))
    assert [[cell.replace("**", "") for cell in markdown_cells(line)] for line in lines] == GRID
    assert "**0.7412**† |" in text
    assert text.startswith(TABLE.caption + "\n\n| model")
    assert text.endswith("|\n\n† p < 0.05, against BM25\n\n" + AWKWARD + "\n")


def test_latex_says_what_the_table_says() -> None:
    text = latex(TABLE)
    opened = re.findall(r"\\(begin|end)\{(\w+)\}", text)
    assert opened == [("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table")]
    assert r"\begin{tabular}{lrrrr}" in text
    rules = re.findall(r"\\(?:top|mid|bottom)rule", text)
    assert rules == [r"\toprule", r"\midrule", r"\midrule", r"\bottomrule"]
    (inner,) = re.findall(r"\\toprule(.*)\\bottomrule", text, re.DOTALL)
    rows = [line.strip().removesuffix(r" \\") for line in inner.replace(r"\midrule", "").splitlines() if line.strip()]
    assert [[tex_text(cell) for cell in re.split(r" (?<!\\)& ", row)] for row in rows] == GRID
    (caption,) = re.findall(r"\\caption\{(.*)\}\n", text)
    assert tex_text(caption) == TABLE.caption
    assert [tex_text(note) for note in re.findall(r"\\footnotesize (.*)", text)] == [*TABLE.notes]
    assert r" & \textbf{0.7412}\textsuperscript{\textdagger{}} & --- & " in text
    # The rule stands above the row that was named.
    assert re.search(r"\\midrule\n *difference & \\textbf\{\$-\$0\.0123\}", text)


def test_html_says_what_the_table_says() -> None:
    page = Page(html(TABLE, TABLE))
    assert page.rows == [*GRID, *GRID]
    assert page.texts["caption"] == [TABLE.caption] * 2
    assert page.texts["title"] == [TABLE.caption]
    assert page.texts["p"] == [*TABLE.notes, *TABLE.notes]
    assert page.texts["strong"] == ["0.7412", "-0.0123"] * 2
    assert page.texts["sup"] == ["†", "&"] * 2
    # A group of rows begins at the rule.
    assert page.groups == [1, 4, 6, 9]
    assert not re.search(r"(src|href)=|url\(|@import", html(TABLE))


def test_a_rule_above_the_first_row_opens_no_empty_group() -> None:
    assert Page(html(Table("", "", {"a": {"x": 1.0}}, rules={"a"}))).groups == [1]


@pytest.mark.parametrize("text", ["a\nb", "a\r\n\tb", " a  b "])
def test_text_stays_on_its_line(text: str) -> None:
    table = Table(text, text, {text: {text: text}}, notes=[text])
    lines = markdown(table).splitlines()
    assert lines == ["a b", "", "| a b | a b |", "|:----|----:|", "| a b | a b |", "", "a b"]
    assert "a b & a b \\\\" in latex(table)


def test_columns_stand_in_the_order_asked_for() -> None:
    rows: dict[str, dict[str, Cell]] = {"a": {"x": 1.0, "y": 2.0}}
    assert markdown(Table("", "", rows, columns=("y", "x", "z"))).splitlines()[0] == "|   |      y |      x | z |"


@pytest.mark.parametrize(
    "more",
    [
        {"columns": ("x",)},
        {"marks": {("a", "z"): "†"}},
        {"bold": {("b", "x")}},
        {"rules": {"b"}},
    ],
)
def test_what_the_table_lacks_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the table has no "):
        Table("", "", {"a": {"x": 1.0, "y": 2.0}}, **more)


def test_the_best_of_each_column() -> None:
    rows: dict[str, dict[str, Cell]] = {
        "a": {"x": 0.70001, "y": None, "z": "text", "w": float("nan")},
        "b": {"x": 0.70004, "y": -0.5, "z": 2.0},
        "c": {"x": 0.1, "y": -1.0, "w": float("inf")},
    }
    # 0.70001 and 0.70004 are printed alike.
    assert best(rows) == {("a", "x"), ("b", "x"), ("b", "y"), ("b", "z")}


def test_a_markdown_table() -> None:
    rows: dict[str, dict[str, Cell]] = {
        "BM25": {"nDCG@10": 0.67891},
        "base": {"format rate": 0.5, "nDCG@10": None, "queries": 1200},
        "after warmup": {"format rate": 1.0, "nDCG@10": float("nan"), "minutes": 12.345, "pairs/s": 98765.4},
    }
    assert markdown_table(rows, corner="model").splitlines() == [
        "| model        | nDCG@10 | format rate | queries | minutes | pairs/s |",
        "|:-------------|--------:|------------:|--------:|--------:|--------:|",
        "| BM25         |  0.6789 |           — |       — |       — |       — |",
        "| base         |       — |      0.5000 |    1200 |       — |       — |",
        "| after warmup |       — |      1.0000 |       — |   12.35 |   98765 |",
    ]


def test_the_docstring_example() -> None:
    rows: dict[str, dict[str, Cell]] = {"bm25": {"ndcg@10": 0.31}, "base": {"accuracy": 0.5, "ndcg@10": None}}
    documented = (markdown_table.__doc__ or "").split("->\n")[1].splitlines()[:4]
    assert markdown_table(rows).splitlines() == [line.strip() for line in documented]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00004, "0.0000"),
        (-0.00004, "0.0000"),
        (-0.12345, "-0.1235"),
        (9.99994, "9.9999"),
        (123.456, "123.5"),
        (1234.5, "1234"),
        (7, "7"),
        (float("inf"), "—"),
    ],
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert markdown_table({"row": {"x": value}}).splitlines()[2].split("|")[2].strip() == text


def test_a_page_is_entitled_with_the_first_sentence():
    page = html(Table("nDCG@10 & more. Protocol: depth 100.", "", {"a": {"x": 1.0}}))
    assert "<title>nDCG@10 &amp; more</title>" in page
