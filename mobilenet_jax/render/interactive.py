"""Make a figure of a page interactive: Vega-Lite, its data and a script, all of them inside the page."""

import base64
import functools
import hashlib
import importlib.util
import json
import pathlib
import string
from collections.abc import Mapping
from typing import Any

WITHOUT = "The figure is fixed: an interactive one needs pip install -c constraints.txt -e '.[page]'."

_HERE = pathlib.Path(__file__).parent


def available() -> bool:
    """Return whether the extra `page` is installed."""
    return importlib.util.find_spec("vl_convert") is not None


def block(data: Mapping[str, Any]) -> tuple[str, str]:
    """Return HTML that shows `data`, and the source expression that lets a Content-Security-Policy run its script.

    The script evaluates no text (`ast`), so the policy needs no 'unsafe-eval'.
    """
    specs = json.loads(_read("interactive.json"))
    text = json.dumps({"specs": specs, **data}, separators=(",", ":")).replace("<", r"\u003c")  # no tag, no comment
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    return string.Template(_read("interactive.html")).substitute(data=text, script=_script()), f"'sha256-{digest}'"


@functools.cache
def _script() -> str:
    """Return our script with Vega, Vega-Lite and Vega-Embed in it. None of their texts ends a script element."""
    import vl_convert

    return vl_convert.javascript_bundle(_read("interactive.js"))


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
