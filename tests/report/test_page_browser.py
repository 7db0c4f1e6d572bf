"""The report's page in a real browser, opened from disk."""

import json
import shutil
from pathlib import Path

import pytest

from lorakit.data.tags import Span
from lorakit.report.errors import Tagged, find_errors
from lorakit.report.errors_page import errors_page
from lorakit.report.page import write_page
from lorakit.report.tables import METRICS, metric
from tests.support.browser import CHROMIUM, browser
from tests.support.reports import HOSTILE, RECORDED, change
from tests.support.seed_runs import make_seeds

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt-get install chromium)")

TABLE = """[...document.querySelectorAll('#%s tbody tr')].filter(row => row.querySelector('td')).map(row => [
  row.querySelector('th').textContent.trim(),
  [...row.querySelectorAll('td')].map(cell => [
    cell.querySelector('data')?.value ?? null, (cell.querySelector('data') ?? cell).textContent.trim()])])"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
INK = "getComputedStyle(document.querySelector('svg text')).fill"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_page([RECORDED], tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def record():
    return json.loads((RECORDED / "comparison.json").read_text())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_it_opens_without_complaint_or_request_and_fits(tab, page, tmp_path, scheme, width):
    tab.open(page, width, scheme=scheme)
    assert tab.complaints() == []
    assert tab.requests() == [page.as_uri()]
    assert tab.run("document.documentElement.scrollWidth") == width
    wide = "p => p.scrollWidth > p.clientWidth + 1"
    assert tab.run(f"[...document.querySelectorAll('.panel')].filter({wide}).map(p => p.textContent)") == []
    assert tab.run("[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 150)")
    assert tab.run(BACKGROUND) == {"light": "rgb(246, 246, 243)", "dark": "rgb(18, 21, 24)"}[scheme]
    tab.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_of_errors_fits_and_breaks_no_word(tab, tmp_path, scheme, width):
    words = "the granulocyte-macrophage colony-stimulating factor receptor in T-lymphoblastoid-cells".split()
    row = Tagged(words, [Span("protein_molecule", 1, 5)], [Span("cell_line", 1, 4), Span("DNA", 6, 7)], [0.97] * 7)
    page = tmp_path / "errors.html"
    splits = {"train": [words], "validation": [words]}
    page.write_text(errors_page(find_errors([row], [(words, row.gold)], splits), [row], "runs/mine on a corpus"))
    tab.open(page, width, scheme=scheme)
    assert tab.complaints() == [] and tab.requests() == [page.as_uri()]
    assert tab.run("document.documentElement.scrollWidth") == width
    heights = "[...document.querySelectorAll('td:first-child')].map(c => c.getBoundingClientRect().height)"
    assert max(tab.run(heights)) < 120, "a narrow column broke words into letters"
    assert tab.run("document.querySelectorAll('section').length") == 9
    wave = "getComputedStyle(document.querySelector('.odd')).textDecorationColor"
    assert tab.run(wave) == {"light": "rgb(179, 38, 30)", "dark": "rgb(255, 143, 133)"}[scheme]


@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_of_several_seeds_fits(tab, tmp_path, width):
    folder = make_seeds(tmp_path / "x", {"full": 0.75, "lora": 0.6}, seeds=3, busy=1, margin=0.01)
    tab.open(write_page([folder]), width)
    assert tab.complaints() == []
    assert tab.run("document.documentElement.scrollWidth") == width
    wide = "p => p.scrollWidth > p.clientWidth + 1"
    for places in (".panel", "#seeds .scroll, #comparison .scroll"):
        assert tab.run(f"[...document.querySelectorAll('{places}')].filter({wide}).map(p => p.textContent)") == []


@pytest.mark.parametrize("split", ["validation", "test"])
def test_scores_on_the_page_are_the_records(tab, page, record, split):
    tab.open(page)
    shown = tab.run(TABLE % f"scores-{split}")
    full, lora = (record["modes"][mode][split] for mode in ("full", "lora"))
    assert len(shown) == len(METRICS) == 8
    for (_, cells), (name, keys) in zip(shown, METRICS, strict=True):
        values = metric(full, keys), metric(lora, keys)
        wanted = [*values, values[1] - values[0]]
        assert [float(value) for value, _ in cells] == wanted, name
        texts = [f"{wanted[0]:.4f}", f"{wanted[1]:.4f}", f"{wanted[2]:+.4f}".replace("-", "−")]
        assert [text for _, text in cells] == texts, name


def test_energy_and_parameters_on_the_page_are_the_records(tab, page, record):
    tab.open(page)
    modes = [record["modes"][mode] for mode in ("full", "lora")]
    rows = tab.run(TABLE % "energy-table")
    for place, part in enumerate(("gpu", "cpu", "ram")):
        kwh = [mode["energy"][part]["kwh"] for mode in modes]
        wanted = [None, None, None] if None in kwh else [1e3 * kwh[0], 1e3 * kwh[1], 1e3 * kwh[1] - 1e3 * kwh[0]]
        shown = [None if value is None else float(value) for value, _ in rows[place][1]]
        assert shown == wanted, (part, rows[place][1])
    full, lora = (1e3 * mode["energy"]["estimated_kwh"] for mode in modes)
    assert [float(value) for value, _ in dict(rows)["Total estimated"]] == [full, lora, lora - full]
    parameters = dict(tab.run(TABLE % "parameter-table"))
    for name, key in (("Trained", "trainable_parameters"), ("Total", "total_parameters"), ("Steps", "steps")):
        assert [int(value) for value, _ in parameters[name]] == [mode[key] for mode in modes]


def test_f1_by_type_on_the_page_is_the_records(tab, page, record):
    tab.open(page)
    rows = tab.run("[...document.querySelectorAll('#types figure')].map(f => [...f.querySelectorAll('tbody tr')].map("
                   "r => [...r.children].map(c => c.textContent)))")  # fmt: skip
    for split, shown in zip(("validation", "test"), rows, strict=True):
        wanted = []
        for name in sorted(record["modes"]["full"][split]["by_type"]):
            for mode, label in (("full", "full"), ("lora", "LoRA")):
                row = record["modes"][mode][split]["by_type"][name]
                figures = [f"{row[key]:.4f}" for key in ("precision", "recall", "f1")]
                wanted.append([name, label, *figures, f"{row['support']:,}"])
        assert shown == wanted


def test_the_theme_can_be_changed_with_the_keyboard_alone(tab, page):
    tab.open(page, scheme="light")
    ink = tab.run(INK)
    tab.press("Tab", 9)
    assert tab.run("document.activeElement.className") == "skip"
    assert tab.run("document.activeElement.getBoundingClientRect().left") >= 0, "the link shows when it has the focus"
    tab.press("Tab", 9)
    assert tab.run("document.activeElement.id") == "theme"
    assert tab.run("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 3
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    seen = []
    for _ in range(3):
        tab.press("Enter", 13, "\r")
        seen.append((tab.run("document.activeElement.textContent"), tab.run(BACKGROUND)))
    light, dark = "rgb(246, 246, 243)", "rgb(18, 21, 24)"
    assert seen == [("Theme: light", light), ("Theme: dark", dark), ("Theme: automatic", light)]
    tab.press("Enter", 13, "\r")
    tab.press("Enter", 13, "\r")
    assert tab.run(INK) != ink, "drawings follow the theme"
    tab.run("localStorage.clear()")


def test_hostile_text_runs_nothing_and_is_shown_as_it_is(tab, tmp_path):
    run = Path(shutil.copytree(RECORDED, tmp_path / "bionlp"))
    change(run, lambda record: record.update(command=HOSTILE, model=HOSTILE))
    page = write_page([run, RECORDED], tmp_path / "report.html", labels=[HOSTILE, "other"])
    tab.open(page, 375)
    assert tab.run("document.title") == "2 runs side by side – lorakit report"
    assert tab.run("document.scripts.length") == 1
    assert tab.run("document.images.length") == 0
    assert tab.run("document.querySelector('pre').textContent") == HOSTILE
    assert tab.run("document.querySelector('.card h3').textContent") == f"{HOSTILE} · full"
    assert tab.complaints() == []
    assert tab.requests() == [page.as_uri()]
    assert tab.run("document.documentElement.scrollWidth") == 375


def test_the_pages_own_policy_stops_what_would_be_injected(tab, page, tmp_path):
    """Were escaping ever to fail, the browser would still refuse; this also shows that complaints() sees."""
    injected = page.read_text().replace("<footer>", "<footer><script>document.title = 'owned'</script>"
                                        "<img src='https://example.invalid/x.png' alt=''>")  # fmt: skip
    (tmp_path / "report.html").write_text(injected)
    tab.open(tmp_path / "report.html")
    assert tab.run("document.title") != "owned"
    assert any("Content Security Policy" in complaint for complaint in tab.complaints())
