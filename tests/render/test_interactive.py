"""The interactive figure in the Chromium of this machine: what it shows, and that it stays inside its page."""

import functools
import itertools
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT
from playwright.sync_api import Browser, Page, sync_playwright

from mobilenet_jax.analysis import points, tradeoffs
from mobilenet_jax.analysis.configurations import group_runs
from mobilenet_jax.records.collect import read
from mobilenet_jax.render import axes, interactive, page, tables

Opened = tuple[Page, list[str]]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "</script><img src=x onerror=alert(1)><b>bold</b> <!-- {{1}} ${1} \"'"
# Machado, Oliveira and Fernandes (2009), severity 1: how each kind of colour blindness changes linear RGB.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def report() -> tables.Page:
    """Return the page of our runs less RMSprop's of the papers' networks: their number grows."""
    grows = {"model.variant": "paper", "optim.name": "rmsprop"}.items()
    found = [run for run in read([ROOT / "results" / "cifar10"])[0] if not grows <= run.config.items()]
    return tradeoffs.page(group_runs(found), [])


def html(report: tables.Page, refresh: int = 0) -> str:
    lead = report.sections[0].pictures[0]
    return page.to_html(
        report.markdown(), {f"{lead.name}.png": axes.svg(lead.draw())}, report.interactive, refresh=refresh
    )


@pytest.fixture(scope="module")
def path(report, tmp_path_factory) -> pathlib.Path:
    found = tmp_path_factory.mktemp("page") / "runs.html"
    found.write_text(html(report), encoding="utf-8")
    return found


def opened(browser: Browser, path: pathlib.Path, width: int = 1280, height: int = 800, **options) -> Opened:
    """Return the page in a window, once it has drawn its figure, and the list of what goes wrong in it."""
    shown = browser.new_page(viewport={"width": width, "height": height}, **options)
    faults: list[str] = []
    shown.on("console", lambda message: faults.append(message.text))
    shown.on("pageerror", lambda error: faults.append(str(error)))
    shown.on("dialog", lambda dialog: faults.append(dialog.message))
    shown.on("request", lambda request: None if request.url == path.as_uri() else faults.append(request.url))
    shown.goto(path.as_uri())
    if options.get("java_script_enabled", True):
        shown.wait_for_selector("#chart svg")
    return shown, faults


def drawn_again(shown: Page, change: Callable[[], object]) -> None:
    """Make a change, and wait until the figure before it has been replaced."""
    before = shown.query_selector("#chart svg")
    change()
    assert before
    while before.evaluate("svg => svg.isConnected"):
        shown.wait_for_timeout(20)
    shown.wait_for_selector("#chart svg")


def choose(shown: Page, **choices: str) -> None:
    for name, value in choices.items():
        drawn_again(shown, functools.partial(shown.locator(f"#controls [name={name}]").select_option, value))


def marks(shown: Page):
    """The marks of our networks, without those of the legend."""
    return shown.locator("#chart .mark-symbol.role-mark path[stroke='#1a1a1a']")


def axis_titles(shown: Page) -> str:
    return " ".join(shown.locator("#chart .role-axis-title text").all_text_contents())


def test_axis_colour_filter_hover_and_click(browser, path, report: tables.Page):
    assert report.interactive
    shown, faults = opened(browser, path)
    assert "mult-adds (millions)" in axis_titles(shown)
    of_ten_epochs = [p for p in report.interactive["points"] if p["epochs"] == 10]
    assert marks(shown).count() == len(of_ten_epochs) == 8
    choose(shown, cost="params", knob="expansion", epochs="4")
    assert "params (millions)" in axis_titles(shown)
    assert "expansion ratio t" in (shown.locator("#chart svg").text_content() or "")
    of_four_epochs = [p for p in report.interactive["points"] if p["epochs"] == 4]
    assert marks(shown).count() == len(of_four_epochs) == 8
    largest = max(of_four_epochs, key=lambda p: p["params"])
    marks(shown).last.hover()
    tooltip = shown.locator("#vg-tooltip-element")
    for text in (largest["name"], largest["accuracy"], *largest["runs"].split(", ")):
        assert text in tooltip.inner_text()
    smallest, network = min(of_four_epochs, key=lambda p: p["params"]), shown.locator("[name=network] option:checked")
    assert network.inner_text() != smallest["name"]
    marks(shown).first.click()
    assert network.inner_text() == smallest["name"]
    curves = shown.locator("#curves .mark-line path")
    assert curves.count() == 2 * len(smallest["runs"].split(", "))  # on test and on training images
    assert faults == []
    shown.close()


@pytest.mark.slow
def test_epochs_are_those_of_the_data_set(browser, tmp_path):
    point = {"layer": "runs", "version": "v1", "alpha": 1, "rho": 1, "expansion": None, "mult_adds": 3, "params": 1}
    point |= {"accuracy": "", "runs": "", "lines": {}, "time": "", "sd": None, "name": "a", "top1": 70}
    places = [("one", 3), ("one", "5, SGD"), ("two", 8)]
    found = [{**point, "dataset": name, "epochs": epochs} for name, epochs in places]
    data = {
        "points": found,
        "curves": [[]] * 3,
        "costs": {"mult_adds": "M"},
        "first": dict(zip(("dataset", "epochs"), places[1], strict=True)),
    }
    path = tmp_path / "two.html"
    path.write_text(page.to_html("# A title\n\nAn answer.\n", {}, data), encoding="utf-8")
    shown, faults = opened(browser, path)
    options = shown.locator("[name=epochs] option")
    assert options.all_text_contents() == ["3", "5, SGD", "all"] and marks(shown).count() == 1
    choose(shown, dataset="two")
    assert options.all_text_contents() == ["8", "all"] and marks(shown).count() == 1
    assert shown.locator("[name=epochs]").input_value() == "all" and faults == []
    assert not shown.locator("#curves-part").is_visible()  # one epoch makes no curve
    shown.close()


def test_one_network(browser, tmp_path):
    """The page of a first run: two points of top-1, rounded costs, whole epochs, and the one version."""
    point = {"layer": "runs", "version": "v1", "alpha": 1, "rho": 1, "expansion": None, "mult_adds": 3.331072}
    point |= {"accuracy": "", "runs": "", "lines": {}, "time": "", "sd": None, "name": "a", "top1": 99.44, "params": 1}
    data = {"points": [{**point, "dataset": "d", "epochs": 3}], "costs": {"mult_adds": "M"}, "first": None}
    data["curves"] = [[{"run": "seed 0", "epoch": [1, 2, 3], "test": [50, 70, 99], "train": [60, 70, 80]}]]
    path = tmp_path / "one.html"
    path.write_text(page.to_html("# A title\n\nAn answer.\n", {}, data), encoding="utf-8")
    shown, faults = opened(browser, path)
    shown.wait_for_selector("#curves svg")
    (cost,), accuracies = (sorted({*map(float, ticks(shown, "#chart", axis))}) for axis in "xy")
    assert cost == 3.33 and 1 < accuracies[-1] - accuracies[0] <= 2.2
    assert ticks(shown, "#curves", "x") == ["1", "2", "3"]
    assert shown.locator("#chart .role-legend-label text").all_text_contents() == ["v1"] and faults == []
    shown.close()


def ticks(shown: Page, figure: str, axis: str) -> list[str]:
    """Return the labels of an axis."""
    return shown.locator(f"{figure} [aria-label^='{axis.upper()}-axis'] .role-axis-label text").all_text_contents()


def test_a_layer_can_be_switched_off(browser, path):
    shown, faults = opened(browser, path)
    hollow = shown.locator("#chart .mark-symbol.role-mark path[fill=transparent]")
    assert hollow.count() == len(points.published("cifar10"))
    drawn_again(shown, shown.get_by_label("published").and_(shown.locator("input")).uncheck)
    assert hollow.count() == 0 and marks(shown).count() == 8 and faults == []
    shown.close()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
def test_the_first_screen_is_the_answer_and_its_figure(browser, path, width, height):
    shown, _ = opened(browser, path, width, height)
    parts = [*shown.locator(".lead > p").all(), shown.locator("#chart svg")]
    assert len(parts) == 4
    for part in parts:
        box = part.bounding_box()
        assert box and box["x"] >= 0 and box["y"] >= 0
        assert box["x"] + box["width"] <= width and box["y"] + box["height"] <= height
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    assert not shown.locator(".lead > figure").is_visible()
    assert not shown.locator("table").first.is_visible()
    shown.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_is_accessible(browser, path, width, scheme):
    shown, _ = opened(browser, path, width, color_scheme=scheme, bypass_csp=True)  # axe is a script
    found = Axe().run(shown).response["violations"]
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    assert [(fault["id"], [node["html"] for node in fault["nodes"]][:3]) for fault in serious] == []
    shown.close()


def test_without_scripts_the_fixed_figure_stays(browser, path):
    shown, _ = opened(browser, path, java_script_enabled=False)
    assert shown.locator(".lead > figure").is_visible() and not shown.locator("#interactive").is_visible()
    assert "JavaScript" in shown.locator(".lead").inner_text()
    shown.close()


def test_without_the_extra_the_fixed_figure_stays(report, monkeypatch):
    monkeypatch.setattr(interactive, "available", lambda: False)
    text = html(report)
    assert ".[page]" in text and "<script" not in text and "script-src" not in text
    assert "<figure>" in text and "<details>" in text


def test_hostile_text_stays_text(browser, tmp_path):
    point = {"layer": "runs", "name": HOSTILE, "dataset": HOSTILE, "epochs": 3, "top1": 70, "accuracy": HOSTILE}
    point |= {"mult_adds": 3.3, "params": 0.2, "version": "v1", "alpha": 0.25, "rho": 1, "expansion": None}
    point |= {"runs": HOSTILE, "lines": {}, "time": "", "sd": None}
    data = {"points": [point], "costs": {"mult_adds": HOSTILE}, "first": None, "refresh": 0}
    data["curves"] = [[{"run": HOSTILE, "epoch": [1, 2], "test": [50, 70], "train": [60, None]}]]
    path = tmp_path / "hostile.html"
    path.write_text(page.to_html("# A title\n\nAn answer.\n\n## A section\n", {}, data), encoding="utf-8")
    shown, faults = opened(browser, path)
    marks(shown).first.hover()
    assert shown.locator("#vg-tooltip-element").inner_text().count(HOSTILE) == 3
    assert HOSTILE in axis_titles(shown)
    assert HOSTILE in (shown.locator("#curves svg").text_content() or "")
    assert shown.locator("[name=dataset] option").all_text_contents() == [HOSTILE]
    assert shown.locator("img, b, script[src]").count() == 0 and faults == []
    shown.close()


def test_the_policy_allows_our_script_alone(path, browser):
    """No 'unsafe-eval', no 'unsafe-inline' for scripts: a script that a page should not have does not run."""
    text = path.read_text()
    policy = text.partition('Content-Security-Policy" content="')[2].partition('"')[0]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-")
    assert policy.count("'") == 6 and "eval" not in policy
    planted = path.with_name("planted.html")
    planted.write_text(text.replace("</main>", "<script>document.title = 'planted'</script></main>"))
    shown, faults = opened(browser, planted)
    assert shown.title() != "planted" and len(faults) == 1 and "Content Security Policy" in faults[0]
    shown.close()


@pytest.mark.slow
def test_a_live_page_keeps_its_choices(browser, report, tmp_path):
    path = tmp_path / "runs.html"
    path.write_text(html(report, refresh=2), encoding="utf-8")
    shown, _ = opened(browser, path)
    for name, value in (("cost", "params"), ("epochs", "4")):
        shown.locator(f"#controls [name={name}]").select_option(value)
    path.write_text(path.read_text().replace("</h1>", " New</h1>"))
    shown.locator("h1", has_text="New").wait_for()
    shown.wait_for_selector("#chart svg")
    assert "params (millions)" in axis_titles(shown) and marks(shown).count() == 8
    shown.close()


@pytest.mark.slow
def test_colours_can_be_told_apart(browser, path):
    """By readers with each of the common kinds of colour blindness, and on white."""
    shown, _ = opened(browser, path)
    for knob, epochs in (("version", "5, SGD"), ("alpha", "10"), ("rho", "10"), ("expansion", "4")):
        choose(shown, knob=knob, epochs=epochs)
        colours = shown.locator("#chart .role-legend .mark-symbol path").evaluate_all(
            "found => found.map(mark => getComputedStyle(mark).fill)"
        )
        rgb = {tuple(int(c) for c in text[4:-1].split(",")) for text in colours if text.startswith("rgb(")}
        rgb.discard((0, 0, 0))  # the legend of shapes
        assert len(rgb) > 1
        for name, matrix in {"none": np.eye(3), **BLINDNESS}.items():
            seen = [lab(colour, matrix) for colour in rgb]
            least = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))
            assert least > 10, (knob, name, least)
    shown.close()


def lab(rgb: tuple[int, ...], matrix) -> np.ndarray:
    """Return the CIELAB coordinates of an sRGB colour as the matrix changes it."""
    share = np.array(rgb) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.cbrt(np.maximum(xyz / (0.9505, 1, 1.089), 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
