"""The report's page: it shows the record's numbers, escapes text, and says what is not known."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from lorakit.report.comparison import STUDY
from lorakit.report.page import make_page, write_page
from lorakit.report.run_comparison import compare_runs
from lorakit.report.runs import read_sources
from tests.support.reports import CROWDED, HOSTILE, RECORDED, change, crowd, figures_of
from tests.support.seed_runs import make_seeds
from tests.support.sentence_runs import make_run
from tests.support.tiny import ROOT

EMPTY = {"meta", "link", "br", "img", "input", "hr", "use", "path", "rect"}


@pytest.fixture(scope="module")
def page():
    return make_page(read_sources([RECORDED]))


class Outline(HTMLParser):
    """Elements with their attributes, and whether tags nest."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text, self.cells = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_tags_nest_ids_are_unique_and_every_reference_has_its_target(page):
    outline = Outline(page)
    assert outline.open == []
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = {
        name for _, a in outline.elements for key in ("aria-labelledby", "aria-describedby") if (name := a.get(key))
    }
    referred |= {a["href"][1:] for _, a in outline.elements if a.get("href", "").startswith("#")}
    referred |= set(re.findall(r"url\(#([^)]+)\)", page))
    assert len(referred) > 20
    assert referred <= set(ids)


def test_nothing_is_loaded_from_anywhere(page):
    outline = Outline(page)
    addresses = [a[key] for _, a in outline.elements for key in ("src", "href", "action", "data") if key in a]
    assert {address for address in addresses if not address.startswith("#")} == {"data:,"}
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_landmarks_headings_tables_and_pictures_have_names_for_screen_readers(page):
    outline = Outline(page)
    for tag in ("header", "nav", "main", "footer", "h1"):
        assert len(outline.all(tag)) == 1, tag
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in zip(levels, levels[1:], strict=False))
    assert len(outline.all("table")) == len(outline.all("caption")) > 8
    assert {a.get("scope") for a in outline.all("th")} == {"col", "row", "rowgroup"}
    pictures = outline.all("svg")
    assert len(pictures) == 6
    assert all(a["role"] == "img" and a["aria-labelledby"] and a["aria-describedby"] for a in pictures)
    assert len(outline.all("desc")) == 6
    assert outline.all("html") == [{"lang": "en"}]


def test_the_same_runs_give_the_same_bytes_in_another_process(page):
    code = f"from lorakit.report.page import *; print(make_page(read_sources([{str(RECORDED)!r}])), end='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == page


def test_text_from_outside_stays_text(run):
    def hostile(record):
        record["command"] = record["model"] = record["dataset"] = HOSTILE
        record["environment"] = {HOSTILE: HOSTILE}
        for values in record["modes"].values():
            for part in ("gpu", "cpu", "ram"):
                values["energy"][part]["source"] = HOSTILE
            for split in ("validation", "test"):
                scores = values[split]
                scores["by_type"] = {HOSTILE: next(iter(scores["by_type"].values()))}

    change(run, hostile)
    text = make_page(read_sources([run, RECORDED], labels=[HOSTILE, "_hidden"]))
    outline = Outline(text)
    assert len(outline.all("script")) == 1
    assert outline.all("img") == []
    assert not any(key.startswith("on") for _, a in outline.elements for key in a)
    shown = "".join(outline.text)
    assert f"{HOSTILE} · LoRA" in shown
    assert shown.count("_hidden · full") > 3


def test_a_component_that_is_unavailable_says_so_and_is_never_zero(page):
    record = json.loads((RECORDED / "comparison.json").read_text())
    assert record["modes"]["full"]["energy"]["gpu"]["method"] == "unavailable"
    rows = figures_of(page, "energy-table")
    assert rows["Energy (Wh): GPU"] == [(None, "– unavailable")] * 2 + [(None, "–")]
    assert rows["Energy (Wh): Total measured"] == [(None, "nothing measured")] * 2 + [(None, "–")]
    assert rows["Energy (Wh): CPU"][0][1].endswith(" estimated")
    assert "GPU – unavailable" in page and "no value, which is not zero" in page


def test_a_file_of_an_older_version_is_still_shown(tmp_path):
    shutil.copy(ROOT / "benchmarks" / "results" / "embedded.json", tmp_path / "comparison.json")
    page = write_page([tmp_path]).read_text()
    assert "No energy over time was recorded." in page
    cells = figures_of(page, "cost-table")
    reached = [row for name, row in cells.items() if name.endswith("% of the best: Seconds")][0]
    assert reached == [(None, "not recorded")] * 2
    assert "not reached" in page


def test_what_was_not_recorded_is_called_so(run):
    def strip(record):
        del record["environment"], record["command"]
        for values in record["modes"].values():
            del values["test"], values["adapter"], values["trainable_parameters"], values["energy"]
            values["validation"] = {
                key: values["validation"][key] for key in ("loss", "precision", "recall", "f1", "accuracy")
            }
            values["history"] = []

    change(run, strip)
    for file in run.glob("*/*.jsonl"):
        file.unlink()
    page = make_page(read_sources([run]))
    assert figures_of(page, "scores-validation")["Strict IOB2: F1"] == [(None, "not recorded")] * 2 + [(None, "–")]
    for sentence in (
        "The command was not recorded.", "No scores by entity type were recorded.", "No learning curve was recorded.",
        "No epoch was scored on a validation set.", "No energy over time was recorded.",
    ):  # fmt: skip
        assert sentence in page
    assert figures_of(page, "energy-table")["Energy (Wh): CPU"] == [(None, "not recorded")] * 2 + [(None, "–")]


def test_runs_with_their_counts_by_sentence_are_compared(tmp_path):
    folders = [make_run(tmp_path / str(seed), {"full": 0.75, "lora": 0.6}, seed) for seed in range(3)]
    page = make_page(read_sources(folders))
    record = compare_runs(folders)
    ((value, text), (_, verdict)) = figures_of(page, "comparison-1")[": F1"]
    assert (value, verdict) == (record["comparisons"][0]["f1"]["default"]["value"], "worse")
    assert "[−0." in text and "LoRA − full, F1: LoRA is worse than full." in page
    panel = page[page.index("<h3>LoRA − full</h3>") : page.index("</table>", page.index('id="comparison-1"'))]
    seen = re.sub(r'<span class="hidden">.*?</span>|<[^>]*>', "", panel)
    assert seen.count("LoRA − full") == 1  # the heading, which neither the caption nor a column repeats
    assert "LoRA − full on the test set, with 95 % intervals" in panel  # for screen readers
    assert make_page(read_sources(folders)) == page


def test_several_seeds_are_shown_as_means_and_totals_with_a_row_each_and_the_verdict(tmp_path):
    folder = make_seeds(tmp_path / "x", {"full": 0.75, "lora": 0.6}, busy=1, margin=0.01)
    page = make_page(read_sources([folder]))
    record = json.loads((folder / "comparison.json").read_text())
    rows = figures_of(page, "seeds-1")
    for seed in record["seeds"]:
        full, lora = (seed["modes"][mode]["test"]["f1"] for mode in ("full", "lora"))
        row = [value for value, _ in rows[f"Test F1: seed {seed['seed']}"]]
        assert row == [full, lora, pytest.approx(lora - full)]
    assert [value for value, _ in rows["Wh estimated: total"]] == pytest.approx([6.0, 6.0, 0.0])
    assert [text for _, text in rows["Training (s): seed 1"]] == ["5.0", "5.0*", "+0.0*"]
    assert figures_of(page, "scores-test")["Default mode: F1"][1][0] == record["modes"]["lora"]["test"]["f1"]
    assert figures_of(page, "energy-table")["Energy (Wh): CPU"][0] == (6.0, "6.000 estimated")
    assert figures_of(page, "parameter-table")["Training: Seed"][0] == (None, "0, 1, 2")
    assert page.count("LoRA − full, F1: LoRA is worse than full.") == 2  # at a glance, and below its table
    assert "F1, test set, mean of 3 seeds" in page and "Equal means within ±0.01 of F1." in page
    assert "6 runs: full (3 seeds), LoRA (3 seeds)" in page and "Energy over time is on the page of each seed." in page
    assert f"{folder}/seed-2/report.html" in page and CROWDED["note"].split("used")[0] in page


def test_the_pages_of_single_runs_say_nothing_of_seeds(page):
    assert 'id="seeds"' not in page and "all seeds" not in page and 'href="#seeds"' not in page


def test_seeds_of_one_mode_have_means_and_no_verdict(tmp_path):
    page = make_page(read_sources([make_seeds(tmp_path / "x", {"lora": 0.6})]))
    assert "comparison-sides" in page and "comparison-1" not in page and "cannot tell" not in page


def test_runs_without_their_counts_by_sentence_say_why_they_are_not_compared(page):
    assert "The runs are not compared by sentence: " in page and "has no sentences.json" in page
    assert "There is one run, so there is nothing to compare." in make_page(read_sources([RECORDED / "lora"]))


def test_the_study_is_shown_beside_ours_with_what_it_published(run):
    change(run, lambda record: record.update(study=STUDY))
    page = make_page(read_sources([run]))
    row = figures_of(page, "scores-validation")["Default mode: F1"]
    assert [value for value, _ in row[2:4]] == [0.809050, 0.805224]
    assert len(row) == 5  # ours and theirs, and the difference of ours
    assert len(figures_of(page, "scores-test")["Default mode: F1"]) == 3  # it published validation only
    assert figures_of(page, "energy-table")["Energy (Wh): GPU"][2] == (1585.529, "1,586 measured")


def test_others_on_the_machine_are_said_beside_the_numbers_and_differences_are_marked(run, page):
    quiet = figures_of(page, "energy-table")
    change(run, crowd)
    crowded = make_page(read_sources([run]))
    rows = figures_of(crowded, "energy-table")
    for name in ("Energy (Wh): CPU", "Energy (Wh): Total estimated", "Mean power (W): RAM", "Time: Training (s)"):
        value, text = quiet[name][2]
        assert rows[name] == [*quiet[name][:2], (value, f"{text}*")]
        assert value == pytest.approx(quiet[name][1][0] - quiet[name][0][0])
    assert figures_of(crowded, "scores-validation") == figures_of(page, "scores-validation")
    assert f"<li>LoRA*: {CROWDED['note']}</li>" in crowded
    assert f'<p class="note warning">{CROWDED["note"]}</p>' in crowded
    assert f"Note: {CROWDED['note']}." in crowded  # in the description of the energy chart
    cost = [row for name, row in figures_of(crowded, "cost-table").items() if name.endswith("the best: Seconds")]
    assert cost and all(text.endswith("*") == (column == 1) for column, (value, text) in enumerate(cost[0]) if value)
    assert CROWDED["note"] not in page and "*" not in "".join(text for row in quiet.values() for _, text in row)


def test_an_installed_package_carries_the_pages_template(tmp_path):
    source = tmp_path / "source"  # building writes beside setup.py
    shutil.copytree(ROOT / "lorakit", source / "lorakit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    command = [
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "lorakit/report/page.html" in zipfile.ZipFile(wheel).namelist()


def test_pages_of_errors_in_a_runs_folders_are_linked_from_where_the_report_is(run, tmp_path):
    (run / "errors.html").write_text("x")
    (run / "lora" / "errors test.html").write_text("x")
    other = tmp_path / "elsewhere"
    other.mkdir()
    for output in (None, other / "r.html"):
        page = write_page([run], output)
        links = re.findall(r'<a href="([^"#]+)">([^<]+)</a>', page.read_text())
        assert [name for _, name in links] == [str(run / "errors.html"), str(run / "lora" / "errors test.html")]
        for address, name in links:
            assert (page.parent / unquote(address)).resolve() == Path(name).resolve()


def test_without_a_page_of_errors_nothing_is_said_of_it(page):
    assert "What goes wrong" not in page
