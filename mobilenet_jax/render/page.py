"""Write the pages of a report: Markdown, a self-contained HTML file of the same content, figures and CSV."""

import errno
import html
import itertools
import pathlib
import re
import string
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mobilenet_jax.render import axes, interactive
from mobilenet_jax.render.tables import Page

_PICTURE = re.compile(r"!\[(?P<caption>.*)\]\((?P<file>[^()]+)\)")
_HERE = pathlib.Path(__file__).parent


def write(out: pathlib.Path, pages: Sequence[Page], refresh: int = 0) -> None:
    """Write the files of all pages into `out`, made if missing. Everything is drawn before the first file is replaced.

    Args:
      out: a directory.
      pages: what to write.
      refresh: seconds after which a browser loads a page again; 0: never.

    Raises:
      OSError: they cannot be written, or one of their names belongs to a directory.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".") as made:
        work = pathlib.Path(made)
        for page in pages:
            drawings = {}
            for picture in (picture for section in page.sections for picture in section.pictures):
                drawings[f"{picture.name}.png"] = axes.save(picture.draw(), work / picture.name)
            for table in (table for section in page.sections for table in (*section.tables, *section.data)):
                (work / f"{table.name}.csv").write_text(table.csv(), encoding="utf-8-sig")  # Excel needs the mark
            text = page.markdown()
            (work / f"{page.name}.md").write_text(text, encoding="utf-8")
            (work / f"{page.name}.html").write_text(
                to_html(text, drawings, page.interactive, refresh), encoding="utf-8"
            )
        files = sorted(work.iterdir())
        if directories := [path.name for path in files if (out / path.name).is_dir()]:
            raise IsADirectoryError(errno.EISDIR, f"{directories[0]} there is a directory")
        for path in files:
            path.replace(out / path.name)


def to_html(markdown: str, drawings: Mapping[str, str], data: Mapping[str, Any] | None = None, refresh: int = 0) -> str:
    """Return a Markdown page as one HTML file. It loads nothing, and has no script but that of an interactive figure.

    Args:
      markdown: a title (#), sections (##), and tables with a heading each (###). What is above the first section leads.
      drawings: the SVG of each picture, by the name of its PNG file. Other pictures stay text.
      data: the data of an interactive figure, which replaces the first picture where scripts run. With data, tables are
        folded.
      refresh: seconds, as in `write`.
    """
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

    # Headings, tables and paragraphs. Anything else in a text (a link, a tag, a backtick) is shown unchanged.
    markdown_it = MarkdownIt("zero").enable(["heading", "table"])
    markdown_it.add_render_rule("table_open", _open_table)
    markdown_it.add_render_rule("table_close", lambda *_: "</table>\n</div>\n")
    _, title, _, *tokens = markdown_it.parse(markdown)
    start = next((i for i, token in enumerate(tokens) if token.tag == "h2"), len(tokens))
    heading, taken = "", {"contents", "interactive", "chart", "controls", "curves", "data", "chart-part", "curves-part"}
    sections: list[tuple[str, list[str]]] = []  # the contents: entries of a section and of its tables
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            name = tokens[i + 1].content
            heading = token.attrs["id"] = _anchor(name, taken)
            entry = f'<a href="#{heading}">{html.escape(name)}</a>'
            if token.tag == "h2" or not sections:
                sections.append((entry, []))
            else:
                sections[-1][1].append(f"<li>{entry}</li>")
        elif token.type == "table_open":
            token.attrs["aria-labelledby"] = heading
        elif token.type == "th_open":
            token.attrs["scope"] = "col"
        elif token.type == "tr_open" and tokens[i + 1].type == "td_open":  # the first cell names the row
            tokens[i + 1].tag = tokens[i + 3].tag = "th"
            tokens[i + 1].attrs["scope"] = "row"
        elif token.type == "paragraph_open":
            found = _PICTURE.fullmatch(tokens[i + 1].content)
            if found and found["file"] in drawings:
                token.tag = tokens[i + 2].tag = "figure"
                drawing = _figure(_anchor("figure", taken), found["caption"], drawings[found["file"]])
                tokens[i + 1].children = [Token("html_inline", "", 0, content=drawing)]
    head = f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else ""
    policy, lead = "", markdown_it.renderer.render(tokens[:start], markdown_it.options, {})
    if data and interactive.available():
        block = interactive.block({**data, "refresh": refresh})
        head, lead, policy = "", lead + block[0], f"; script-src {block[1]}"
    elif data:
        lead += f"<p>{html.escape(interactive.WITHOUT)}</p>\n"
    contents = "\n".join(f"<li>{entry}{_folded(below)}</li>" for entry, below in sections)
    return string.Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title.content),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        policy=policy,
        head=head,
        lead=lead and f'<div class="lead">\n{lead}</div>\n',
        contents=f"<ol>\n{contents}\n</ol>",
        body=markdown_it.renderer.render(_fold(tokens[start:]) if data else tokens[start:], markdown_it.options, {}),
    )


def _anchor(name: str, taken: set[str]) -> str:
    """Return an id for `name` that is not in `taken`, and add it. It has no dot, but ids inside a figure do."""
    base = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") or "part"
    found = next(a for n in itertools.count(1) if (a := base if n == 1 else f"{base}-{n}") not in taken)
    taken.add(found)
    return found


def _fold(tokens: Iterable[Any]) -> list[Any]:
    """Return the tokens with each table, its heading and its notes in an element that the reader can unfold."""
    from markdown_it.token import Token

    found, inside = [], False
    for token in tokens:
        if token.type == "heading_open":
            marks = "</details>\n" * inside + "<details>\n<summary>" * (inside := token.tag == "h3")
            found.append(Token("html_block", "", 0, content=marks))
        found.append(token)
        if token.type == "heading_close" and inside:
            found.append(Token("html_block", "", 0, content="</summary>\n"))
    return [*found, Token("html_block", "", 0, content="</details>\n" * inside)]


def _folded(tables: Sequence[str]) -> str:
    """Return the entries of several tables in a list that the reader can unfold."""
    return f"<details><summary>{len(tables)} tables</summary><ol>{''.join(tables)}</ol></details>" if tables[1:] else ""


def _figure(anchor: str, caption: str, svg: str) -> str:
    """Return a drawing with its caption, and with ids and a style that no other figure of the page has."""

    def own(tag: re.Match[str]) -> str:
        attributes = re.sub(r' xmlns(:\w+)?="[^"]*"', "", tag[0]).replace(" xlink:href=", " href=")
        return re.sub(r'( id="| href="#|url\(#)', rf"\1{anchor}.", attributes)

    label = html.escape(caption)
    drawing = re.sub("<[^<>]+>", own, svg[svg.index("<svg") :])
    drawing = drawing.replace("<svg", f'<svg id="{anchor}" role="img" aria-label="{label}"', 1)
    drawing = drawing.replace('type="text/css">*{', f'type="text/css">#{anchor} *{{')
    return f"\n{drawing}<figcaption>{label}</figcaption>\n"


def _open_table(renderer: Any, tokens: Sequence[Any], i: int, options: Any, env: Any) -> str:
    return f'<div class="table" role="region" tabindex="0"{renderer.renderAttrs(tokens[i])}>\n<table>\n'
