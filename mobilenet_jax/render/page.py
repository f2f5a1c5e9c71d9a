"""One self-contained HTML page from tables and figures: no network, no script.

Everything it is given is text, whatever it looks like: it is escaped, and Markdown's links and backticks are plain.
"""

import dataclasses
import html as markup
import itertools
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from mobilenet_jax.render.charts import Figure, svg
from mobilenet_jax.render.tables import Table, plain

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_NUMBER = re.compile(r"\W*\d[\d\W]*(e[-+]?\d+)?([^\W\d_]{1,3}\W*)?")  # with its sign, error and a short unit
_LONG = {"td": 40, 'th scope="col"': 16}  # characters; a longer cell may be broken into lines
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<nav id="contents" aria-label="Contents"><ol>
{contents}
</ol></nav>
<main>
{body}
</main>
{footer}</body>
</html>
"""
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1a1a1a; --quiet: #595959; --line: #d5d5d5; --link: #0b57a4;
  --shade: #0003 }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #16181b; --text: #e6e6e6; --quiet: #a8adb3; --line: #3a3e44; --link: #8ec5ff; --shade: #fff3 } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100% }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; overflow-wrap: anywhere; color: var(--text);
  background: var(--page); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif }
h1, h2 { line-height: 1.2; text-wrap: balance }
h1 { margin: .5rem 0 1.25rem; font-size: 1.75rem }
h2 { margin: 3rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: 1.375rem }
p { margin: .75rem 0; max-width: 44rem }
a { color: var(--link); text-underline-offset: .15em }
nav { max-width: 44rem; line-height: 1.3 }
nav ol { margin: 0; padding-left: 1.5rem }
nav ol ol { padding-left: 1rem; list-style: none }
summary, nav ol ol { font-size: .875rem }
summary { padding: .25rem 0; color: var(--quiet); cursor: pointer }
nav a { display: block; padding: .25rem 0 }
.figures { display: grid; gap: 1.5rem 2rem; margin: 1.5rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)) }
figure { margin: 0; max-width: 40rem }
figure > svg { display: block; width: 100%; height: auto; background: #fff }
figcaption { margin-top: .5rem; color: var(--quiet); font-size: .875rem }
.table { margin: 2rem 0 .5rem; overflow-x: auto; container-type: inline-size;
  background: linear-gradient(to left, var(--page) 1rem, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) right / .75rem 100% no-repeat scroll }
table { border-collapse: separate; border-spacing: 0; font-size: .875rem; line-height: 1.35;
  font-variant-numeric: tabular-nums }
caption { padding-bottom: .5rem; text-align: left; font-size: 1rem; font-weight: 600 }
caption span { position: sticky; left: 0; display: block; width: 100cqw; margin-right: -100cqw }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; overflow-wrap: normal }
thead th { border-bottom: 2px solid var(--quiet); vertical-align: bottom; font-weight: 600; white-space: normal }
tbody th { font-weight: 400; overflow-wrap: anywhere; white-space: normal }
tr > th:first-child { position: sticky; left: 0; min-width: min(var(--first) + .75rem, 46cqw); padding-left: 0;
  border-right: 1px solid var(--line); background: var(--page) }
.number { text-align: right }
.long { min-width: 15rem; white-space: normal; overflow-wrap: anywhere }
thead .long { min-width: 7.25rem; overflow-wrap: normal }
.note, footer { color: var(--quiet); font-size: .875rem }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line) }
@media (max-width: 44rem) { figure { margin-inline: -1rem } figcaption { padding-inline: 1rem } }
@media print {
  body { padding: 0; max-width: none; font-size: 10pt } nav, .up { display: none }
  figure, tr { break-inside: avoid } h2, caption { break-after: avoid } figure { margin-inline: 0 }
  .table { overflow: visible; container-type: normal; background: none } table { font-size: 7pt }
  tr > th:first-child { position: static; min-width: 0 } th, td { white-space: normal }
  tbody th, .long, thead .long { overflow-wrap: break-word } .long { min-width: 10em } thead .long { min-width: 0 }
  caption span { position: static; width: auto; margin: 0 } }
"""


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with what stands below it, in this order; a paragraph of `text` is plain text."""

    title: str
    text: Sequence[str] = ()
    figures: Sequence[tuple[str, Figure]] = ()  # caption, which is its description too; figure
    tables: Sequence[Table] = ()


def html(title: str, sections: Sequence[Section], footer: str = "") -> str:
    """The whole page, the same for the same input. Sections and tables have anchors: their titles and names."""
    taken = {"contents"}
    contents, body = [], []
    for section in sections:
        anchor = _anchor(section.title, taken)
        body += [f'<section aria-labelledby="{anchor}">', f'<h2 id="{anchor}">{_text(section.title)}</h2>']
        body += [f"<p>{_text(paragraph)}</p>" for paragraph in section.text]
        pictures = [_figure(_anchor("figure", taken), *figure) for figure in section.figures]
        body += ['<div class="figures">', *pictures, "</div>"] if pictures else []
        below = []
        for table in section.tables:
            name = _anchor(table.name, taken)
            below.append(_entry(name, table.title))
            body.append(_table(name, table))
        body += ['<p class="up"><a href="#contents">Contents</a></p>', "</section>"]
        contents.append(_entry(anchor, section.title, below))
    return _PAGE.format(
        policy=_POLICY,
        style=_STYLE,
        title=_text(title),
        contents="\n".join(contents),
        body="\n".join(body),
        footer=f"<footer>{_text(footer)}</footer>\n" if footer else "",
    )


def _text(text: str) -> str:
    return markup.escape(plain(text))


def _anchor(name: str, taken: set[str]) -> str:
    """An id for `name` that is not among `taken`, and is from now on. It has no dot: ids inside a figure have one."""
    base = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") or "part"
    found = next(a for n in itertools.count(1) if (a := base if n == 1 else f"{base}-{n}") not in taken)
    taken.add(found)
    return found


def _entry(anchor: str, title: str, tables: Sequence[str] = ()) -> str:
    """A line of the contents; the entries of several tables are folded away below it."""
    below = f"<details><summary>{len(tables)} tables</summary><ol>{''.join(tables)}</ol></details>"
    return f'<li><a href="#{anchor}">{_text(title)}</a>{below if len(tables) > 1 else ""}</li>'


def _table(anchor: str, table: Table) -> str:
    """The table in a container that scrolls by itself, its note below."""
    numbers = [False, *map(_numeric, list(zip(*table.rows, strict=True))[1:])]  # the first column names the rows
    numbers += [False] * (len(table.header) - len(numbers))  # no rows
    head = [_cell('th scope="col"', *cell) for cell in zip(table.header, numbers, strict=True)]
    lines = [
        f'<div class="table" role="region" tabindex="0" aria-labelledby="{anchor}.caption">',
        f'<table id="{anchor}" style="--first: {min(28, max(len(row[0]) for row in (table.header, *table.rows)))}ch">',
        f'<caption><span id="{anchor}.caption">{_text(table.title)}</span></caption>',
        f"<thead><tr>{''.join(head)}</tr></thead>",
        "<tbody>",
    ]
    for row in table.rows:
        tags = ('th scope="row"', *["td"] * (len(row) - 1))
        lines.append(f"<tr>{''.join(map(_cell, tags, row, numbers))}</tr>")
    notes = [f'<p class="note">{_text(paragraph)}</p>' for paragraph in table.note.split("\n\n") if paragraph]
    return "\n".join([*lines, "</tbody>", "</table>", "</div>", *notes])


def _cell(tag: str, text: str, number: bool) -> str:
    kinds = " ".join(["number"] * number + ["long"] * (len(text) > _LONG.get(tag, len(text))))
    opening = f'{tag} class="{kinds}"' if kinds else tag
    return f"<{opening}>{_text(text)}</{tag[:2]}>"


def _numeric(column: Sequence[str]) -> bool:
    """Whether most of the cells that say something are numbers, and none is a sentence, which would push them away."""
    told = [cell for cell in column if re.search(r"\w", cell)]
    return 2 * sum(bool(_NUMBER.fullmatch(cell)) for cell in told) > len(told) and max(map(len, told)) <= 24


def _figure(anchor: str, caption: str, figure: Figure) -> str:
    """The figure as a part of the page. Matplotlib gives all figures the same ids: here they begin with the anchor."""
    root = ElementTree.fromstring(plain(svg(figure)))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            key = name.rpartition("}")[2]
            if key == "id":
                value = f"{anchor}.{value}"
            elif key == "href":
                value = value.replace("#", f"#{anchor}.", 1)
            element.set(key, value.replace("url(#", f"url(#{anchor}."))
        if element.tag == "style":  # a style sheet holds for the whole page, wherever it stands
            element.text = (element.text or "").replace("*{", f"#{anchor} *{{")
    root.attrib |= {"role": "img", "aria-label": plain(caption)}
    drawing = ElementTree.tostring(root, encoding="unicode")
    return f'<figure id="{anchor}">\n{drawing}\n<figcaption>{_text(caption)}</figcaption>\n</figure>'
