"""The page: everything that it shows is text, in one well-formed file without scripts, no wider than a phone."""

import functools
import html.parser
import pathlib
import re
import shutil
import subprocess

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from mobilenet_jax.render import axes, charts, interactive, page
from mobilenet_jax.render.tables import Page, Picture, Section, Table

VOID = {"link", "meta"}  # tags without an end
HOSTILE = ("<script>alert(1)</script>", "\"&'", "</style><b onload='x'>", "[a](https://example.org)", "`code`", "a\0b")
HOSTILE += ("![a](https://example.org/a.png)", "**a**", "&amp;", "\\<b>", "a|b\\|", "<https://example.org>")
TABLE = Table(
    "runs",
    "Finished runs",
    ("network", "data", "top-1", "what"),
    (("v1", "3x3", "71.2 ± 0.3 %", "-"), ("v2", "28x28x3", "-", "word " * 20), ("v3", "", "68 %", "")),
    "A note.\n\nAnother one.",
)
POINTS = [charts.NetworkPoint(version, 1, 224, x, 70) for version, x in (("v1", 569), ("v2", 300))]


class Reader(html.parser.HTMLParser):
    """Elements as (tag, attributes, own text); fails where a tag is not closed in its place."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], str]] = []
        self.open: list[int] = []  # elements that are not closed yet
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, {key: value or "" for key, value in attrs}, ""))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data):
        if self.open:
            tag, attributes, text = self.elements[self.open[-1]]
            self.elements[self.open[-1]] = (tag, attributes, text + data)

    def all(self, *tags: str) -> list[tuple[str, dict[str, str], str]]:
        return [element for element in self.elements if element[0] in tags]


def hatched() -> Figure:
    """A figure with ids of all kinds: a marker, a clipping path, a hatch, a colour map that becomes an image."""
    figure = charts.mult_adds_by_kind({"v1 <1>": {"conv": 2e6, "dense": 8e6}})
    figure.axes[0].plot([1, 200], [0, 1], "o")
    figure.add_axes((0.8, 0.8, 0.1, 0.1)).imshow(np.eye(2))
    return figure


def rendered(*sections: Section, title: str = "A title") -> str:
    """The page of these sections, as `page.write` makes it."""
    pictures = [picture for section in sections for picture in section.pictures]
    drawings = {f"{picture.name}.png": axes.svg(picture.draw()) for picture in pictures}
    return page.to_html(Page("page", title, sections).markdown(), drawings)


def example() -> str:
    draw = functools.partial(charts.accuracy, POINTS, POINTS[1:])
    return rendered(
        Section("Runs & more", ("A paragraph.",), (Picture("1", "One", draw), Picture("2", "Two", draw)), (TABLE,)),
        Section("Figure", (), (Picture("3", "Three", hatched),), (TABLE, Table("empty", "None", ("a", "b"), ()))),
        Section("Ω"),
    )


@pytest.fixture(scope="module")
def text() -> str:
    return example()


def test_is_well_formed_and_has_everything(text):
    reader = Reader(text)
    assert text.startswith("<!DOCTYPE html>\n")
    assert reader.all("html")[0][1] == {"lang": "en"}
    assert [shown for *_, shown in reader.all("title", "h1")] == ["A title", "A title"]
    assert [shown.strip() for *_, shown in reader.all("h2", "h3", "figcaption")] == [
        *("Runs & more", "One", "Two", "Finished runs", "Figure", "Three", "Finished runs", "None", "Ω")
    ]
    assert [shown for *_, shown in reader.all("p")] == ["A paragraph.", *["A note.", "Another one."] * 2]
    assert [attributes["aria-label"] for _, attributes, _ in reader.all("svg")] == ["One", "Two", "Three"]


@pytest.mark.filterwarnings("ignore:Glyph 0 .*:UserWarning")  # matplotlib's
@pytest.mark.parametrize("bad", HOSTILE)
def test_everything_is_text(bad):
    table = Table("name", bad, (bad, bad), ((bad, bad),), bad)
    picture = Picture("picture", bad, lambda: charts.mult_adds_by_kind({bad: {"conv": 1}}))
    reader = Reader(rendered(Section(bad, (bad,), (picture,), (table,)), title=bad))
    shown = bad.replace("\0", "\ufffd")
    texts = [text for *_, text in reader.all("title", "h1", "h2", "h3", "p", "figcaption", "th", "td")]
    assert [text.strip() for text in texts] == [shown] * 11
    assert [text for *_, text in reader.all("text")].count(shown) == 1
    assert reader.all("svg")[0][1]["aria-label"] == shown
    assert not reader.all("script", "b", "code", "strong", "img")
    assert [attributes["href"] for _, attributes, _ in reader.all("a") if attributes["href"][0] != "#"] == []
    assert not any(key.startswith("on") for _, attributes, _ in reader.elements for key in attributes)


def test_a_picture_that_is_not_ours_is_text():
    reader = Reader(rendered(Section("A section", ("![a](file.png)",))))
    assert [shown for *_, shown in reader.all("p")] == ["![a](file.png)"]


def test_a_surrogate_can_be_written():
    """JSON may hold one."""
    assert "a\ufffdb".encode() in rendered(title="a\ud800b").encode()


def test_refers_to_nothing_outside(text):
    reader = Reader(text)
    assert not reader.all("script", "img", "iframe", "object", "embed", "base", "form")
    assert not re.search(r"https?:|//[a-z]|@import", text)
    references = re.findall(r'(?:href|src)="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
    assert references and all(reference.startswith(("#", "data:")) for reference in references)
    (policy,) = [attributes for _, attributes, _ in reader.all("meta") if "http-equiv" in attributes]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_ids_are_unique_and_every_reference_has_its_own(text):
    elements = Reader(text).elements
    ids = [attributes["id"] for _, attributes, _ in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    local = re.findall(r'(?:href="|url\()#([^")]+)', text)
    labels = [attributes["aria-labelledby"] for _, attributes, _ in elements if "aria-labelledby" in attributes]
    assert {*local, *labels} <= set(ids)
    figure = ""
    for tag, attributes, _ in elements:
        figure = attributes["id"] if tag == "svg" else figure
        for value in attributes.values():
            if tag != "a":
                assert all(prefix == figure for prefix in re.findall(r"(?:^|url\()#([^.]+)\.", value))
    assert len({name.partition(".")[0] for name in local if "." in name}) == 3


def test_contents_lead_to_sections_and_tables(text):
    reader = Reader(text)
    contents = [(attributes["href"], shown) for _, attributes, shown in reader.all("a") if shown != "Contents"]
    assert contents == [
        *(("#runs-more", "Runs & more"), ("#figure-3", "Figure"), ("#finished-runs-2", "Finished runs")),
        *(("#none", "None"), ("#part", "Ω")),
    ]
    ids = {attributes["id"]: tag for tag, attributes, _ in reader.elements if "id" in attributes}
    assert [ids[anchor[1:]] for anchor, _ in contents] == ["h2", "h2", "h3", "h3", "h2"]


def test_a_table_has_all_its_cells():
    reader = Reader(rendered(Section("Runs", tables=(TABLE,))))
    (region,) = [attributes for _, attributes, _ in reader.all("div") if "role" in attributes]
    assert region["aria-labelledby"] == "finished-runs" and region["role"] == "region"
    cells = [(attributes.get("scope"), shown.strip()) for _, attributes, shown in reader.all("th", "td")]
    columns = len(TABLE.header)
    assert cells[:columns] == [("col", name) for name in TABLE.header]
    assert [shown for _, shown in cells[columns:]] == [cell.strip() for row in TABLE.rows for cell in row]
    assert [scope for scope, _ in cells[columns:]] == ["row", None, None, None] * len(TABLE.rows)
    assert len(reader.all("tr")) == 1 + len(TABLE.rows)
    styles = [attributes.get("style") for _, attributes, _ in reader.all("th", "td")]
    assert styles == [None, None, "text-align:right", None] * (1 + len(TABLE.rows))


@pytest.mark.parametrize("bad", HOSTILE)
def test_tables_of_a_page_with_data_are_folded(bad, monkeypatch):
    """With their notes; a lead is above the contents."""
    monkeypatch.setattr(interactive, "available", lambda: False)
    table = Table("name", bad, (bad,), ((bad,),), bad)
    sections = [Section("", (bad,)), Section(bad, tables=(table, table)), Section("B", (bad,), tables=(table,))]
    reader = Reader(page.to_html(Page("page", "A title", sections).markdown(), {}, {"points": []}))
    shown = bad.replace("\0", "\ufffd")
    assert [text for *_, text in reader.all("p")] == [shown, interactive.WITHOUT, shown, shown, shown, shown]
    tags = [tag for tag, *_ in reader.elements if tag in ("h2", "h3", "details", "table", "nav")]
    fold = ["details", "h3", "table"]
    assert tags == ["nav", "details", "h2", *fold, *fold, "h2", *fold]
    assert not reader.all("script", "b", "code", "img")


def test_the_same_page_each_time(text):
    """With any settings of matplotlib by the user, too."""
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": None}):
        assert example() == text
    assert Reader(text).all("text")


def test_a_figure_keeps_its_style_to_itself(text):
    rules = [shown for *_, shown in Reader(text).all("style")]
    assert len(rules) == 1 + 3
    assert [rule.partition(" ")[0] for rule in rules[1:]] == ["#figure", "#figure-2", "#figure-4"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_is_no_wider_than_a_phone(tmp_path):
    """With the longest words and tables, in a frame as wide as a phone."""
    wide = Table(
        "wide", "W" * 60 + " wide" * 40, ("x" * 60, *["column"] * 30), (("y" * 80, *["z" * 90] * 30),), "n" * 90
    )
    picture = Picture("points", "c" * 200, lambda: charts.accuracy(POINTS, POINTS[1:]))
    text = rendered(Section("S" * 90, ("p" * 200,), (picture,), (wide, TABLE)), title="T" * 90)
    assert chromium(text, 360, "frame.contentDocument.documentElement.scrollWidth", tmp_path) == "360"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium")
def test_three_columns_fit_on_a_phone(tmp_path):
    """And the names of the rows are whole: they have one line each."""
    keys = ("train.label_smoothing", "optim.decay_depthwise")
    table = Table("t", "T", ("", "finetune-a0.35-" * 3, "b"), tuple((key, "word " * 20, "z" * 60) for key in keys))
    text, shown = rendered(Section("S", tables=(table,))), "frame.contentDocument.querySelector"
    fits = f"{shown}('table').scrollWidth <= {shown}('.table').clientWidth"
    lines = f"(name => (name.selectNodeContents({shown}('tbody th')), name.getClientRects().length))(new Range())"
    assert chromium(text, 390, f"[{fits}, {lines}]", tmp_path) == "true,1"


def chromium(text: str, width: int, question: str, directory: pathlib.Path) -> str:
    """The answer of a script to a question about the page in a frame of this width."""
    (directory / "frame.html").write_text(
        f"""<!DOCTYPE html><meta charset="utf-8"><title>frame</title>
        <iframe id="frame" width="{width}" height="740" style="border: 0" srcdoc="{html.escape(text)}"></iframe>
        <script>onload = () => {{ document.title = "found " + ({question}) }}</script>""",
        encoding="utf-8",
    )
    flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-sync --disable-quic"
    flags += f" --disable-background-networking --disable-component-update --user-data-dir={directory / 'profile'}"
    command = ["chromium", *flags.split(), "--virtual-time-budget=5000", "--dump-dom", str(directory / "frame.html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search("<title>found (.*)</title>", done.stdout)
    assert found, done.stderr
    return found[1]
