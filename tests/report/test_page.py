"""The report's page: its figures are the record's, it is escaped, and it says what is not known."""

import copy
import json
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lorakit.cli.__main__ import main
from lorakit.report.charts import STAND_INS, energy_chart, f1_chart, plain, top_of
from lorakit.report.page import make_page, write_page
from lorakit.report.palette import DARK, LIGHT, contrast
from lorakit.report.runs import read_sources
from tests.support.tiny import ROOT

RECORDED = (
    Path(__file__).parents[1] / "support" / "recorded" / "bionlp"
)  # what a run of examples/bionlp.py left, checkpoints aside
HOSTILE = """</title><script>document.title='owned'</script><img src=x onerror="document.title='owned'">'"&$x$"""
EMPTY = {"meta", "link", "br", "img", "input", "hr", "use", "path", "rect"}


@pytest.fixture
def run(tmp_path):
    """A copy of the recorded run that a test may change."""
    return Path(shutil.copytree(RECORDED, tmp_path / "bionlp"))


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


def change(run, edit):
    path = run / "comparison.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    return record


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


def test_landmarks_headings_tables_and_pictures_are_named_for_those_who_do_not_see_them(page):
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


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_both_backgrounds(colours):
    for ground in ("page", "panel"):
        for name in colours.keys() - {"page", "panel", "rule"}:
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # WCAG's own example of just too little


def test_drawings_take_every_colour_from_the_page(page):
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for drawing in drawings:
        assert not re.search(r"(fill|stroke)\s*[:=]\s*\"?(#|rgb|black|white)", drawing)
        assert not any(stand_in in drawing for stand_in in STAND_INS.values())
    used = {name for drawing in drawings for name in re.findall(r"var\(--(\w+)\)", drawing)}
    assert {"ink", "muted", "run1", "run2", "cpu", "ram"} <= used <= LIGHT.keys() == DARK.keys()


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


def test_names_in_drawings_are_short_printable_and_not_taken_for_mathematics():
    assert plain("_a\n\x00b", 20) == "\u200b_a  b"
    assert plain("x" * 50 + "end", 10) == "…xxxxxxend"
    assert len(plain("_" * 50, 10)) <= 11


def figure_of(cell):
    value = re.search(r'value="([^"]*)"', cell)
    return float(value[1]) if value else None, " ".join(re.sub("<[^>]+>", " ", cell).split())


def figures_of(text, table):
    """Row name -> the texts and exact values of its cells; a group's rows are prefixed by its name."""
    body = re.search(rf'<table id="{table}">(.*?)</table>', text, re.DOTALL)[1]
    rows, group = {}, ""
    for line in re.findall(r"<tr.*?</tr>", body, re.DOTALL):
        found = re.search(r'scope="rowgroup"[^>]*>([^<]*)', line)
        if found:
            group = found[1]
        elif "<td>" in line:
            name = re.sub("<[^>]+>", "", re.search(r'scope="row"[^>]*>(.*?)</th>', line)[1])
            cells = re.findall(r"<td>(.*?)</td>", line, re.DOTALL)
            rows[f"{group}: {name}"] = [figure_of(cell) for cell in cells]
    return rows


def test_a_component_that_is_unavailable_says_so_and_is_never_zero(page):
    record = json.loads((RECORDED / "comparison.json").read_text())
    assert record["modes"]["full"]["energy"]["gpu"]["method"] == "unavailable"
    rows = figures_of(page, "energy-table")
    assert rows["Energy (Wh): GPU"] == [(None, "– unavailable")] * 2
    assert rows["Energy (Wh): Total measured"] == [(None, "nothing measured")] * 2
    assert rows["Energy (Wh): CPU"][0][1].endswith(" estimated")
    assert "GPU – unavailable" in page and "no figure, which is not zero" in page


def measured_gpu(run):
    """The run as a machine with a GPU's counter would have written it: 100 W."""
    for journal in run.glob("*/energy.jsonl"):
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        for line in lines:
            if "reading" in line:
                kwh = 100 * line["reading"]["duration_s"] / 3.6e6
                line["reading"]["gpu"] |= {"kwh": kwh, "mean_w": 100.0, "method": "counter", "source": "NVML"}
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def edit(record):
        for values in record["modes"].values():
            kwh = 100 * values["energy"]["duration_s"] / 3.6e6
            values["energy"]["gpu"] |= {"kwh": kwh, "mean_w": 100.0, "method": "counter", "source": "NVML"}
            values["energy"]["measured_kwh"] = kwh

    return change(run, edit)


def test_measured_is_solid_and_estimated_is_hatched_and_both_say_it_in_words(run):
    record = measured_gpu(run)
    chart = energy_chart(read_sources([run])[0].runs[0], 0, 3.0)
    gpu, cpu, ram = re.findall(
        r'<g id="energy0-axes_\d">.*?(?=<g id="energy0-axes_|</g>\s*</g>\s*<defs>|$)', chart.svg, re.DOTALL
    )
    assert "GPU – measured" in gpu and "CPU – estimated" in cpu and "RAM – estimated" in ram
    assert "fill: url(#" not in gpu
    assert all("fill: url(#" in panel for panel in (cpu, ram))
    assert "stroke-dasharray" in cpu
    page = make_page(read_sources([run]))
    cells = figures_of(page, "energy-table")
    wanted = 1e3 * record["modes"]["full"]["energy"]["gpu"]["kwh"]
    assert cells["Energy (Wh): GPU"][0] == (wanted, f"{wanted:.3f} measured")
    assert cells["Energy (Wh): Total measured"][0][0] == pytest.approx(wanted)
    assert any(name.endswith("Wh measured") for name in figures_of(page, "cost-table"))


def test_a_file_of_an_older_version_is_still_shown(tmp_path):
    shutil.copy(ROOT / "benchmarks" / "results" / "embedded.json", tmp_path / "comparison.json")
    page = write_page([tmp_path]).read_text()
    assert "No energy over time was recorded." in page
    cells = figures_of(page, "cost-table")
    reached = [row for name, row in cells.items() if name.endswith("80% of the best: Seconds")][0]
    assert reached == [(None, "not recorded")] * 2
    assert "not reached" in page


def test_what_was_not_recorded_is_named_so(run):
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
    assert figures_of(page, "energy-table")["Energy (Wh): CPU"] == [(None, "not recorded")] * 2


def test_a_folder_without_a_comparison_is_one_run_with_what_its_log_and_journal_tell(run):
    record = json.loads((run / "comparison.json").read_text())["modes"]["lora"]
    (run / "comparison.json").unlink()
    with (run / "lora" / "metrics.jsonl").open("a") as log:
        log.write('{"event": "step", "epo')  # a kill in the middle of a line
    (source,) = read_sources([run / "lora"])
    (only,) = source.runs
    assert (only.label, only.mode) == ("LoRA", "lora")
    assert only.scores("validation")["f1"] == record["validation"]["f1"]
    assert only.scores("test")["f1"] == record["test"]["f1"]
    assert only.component("cpu")["kwh"] == pytest.approx(record["energy"]["cpu"]["kwh"])
    page = make_page([source])
    assert figures_of(page, "parameter-table")["Parameters: Trained"] == [(None, "not recorded")]
    assert figures_of(page, "scores-test")["Default mode: F1"][0][0] == record["test"]["f1"]


def test_a_log_of_another_run_is_not_taken_for_this_ones(run):
    """`lorakit train --mode lora` logs in the output folder itself, where --mode both may have left lora/."""
    (run / "lora" / "metrics.jsonl").rename(run / "metrics.jsonl")
    (run / "lora" / "energy.jsonl").rename(run / "energy.jsonl")
    shutil.copy(run / "full" / "metrics.jsonl", run / "lora")
    full, lora = read_sources([run])[0].runs
    assert [line["f1"] for line in lora.evaluations] == [scores["f1"] for scores in lora.values["history"]]
    assert lora.energy and lora.steps and lora.steps != full.steps
    (run / "metrics.jsonl").unlink()
    lora = read_sources([run])[0].runs[1]
    assert (lora.energy, lora.steps) == ((), ())
    assert [line["f1"] for line in lora.evaluations] == [scores["f1"] for scores in lora.values["history"]]


def test_several_runs_stand_side_by_side_under_names_that_tell_them_apart(run, tmp_path):
    other = Path(shutil.copytree(run / "lora", tmp_path / "other" / "lora"))
    sources = read_sources([run, run / "lora", other])
    labels = [r.label for source in sources for r in source.runs]
    assert labels == ["bionlp · full", "bionlp · LoRA", "bionlp/lora", "other/lora"]
    page = make_page(sources)
    assert len(figures_of(page, "scores-test")["Default mode: F1"]) == 4  # no difference of four
    assert "3 runs side by side" in page


def test_the_study_stands_beside_ours_with_what_it_published(run):
    from lorakit.report.tables import STUDY

    change(run, lambda record: record.update(study=STUDY))
    page = make_page(read_sources([run]))
    row = figures_of(page, "scores-validation")["Default mode: F1"]
    assert [value for value, _ in row[2:4]] == [0.809050, 0.805224]
    assert len(row) == 5  # ours and theirs, and the difference of ours
    assert len(figures_of(page, "scores-test")["Default mode: F1"]) == 3  # it published validation only
    assert figures_of(page, "energy-table")["Energy (Wh): GPU"][2] == (1585.529, "1,586 measured")


def test_a_long_run_is_thinned_to_its_width_and_keeps_both_ends(run):
    log = run / "full" / "metrics.jsonl"
    steps = [{"event": "step", "epoch": 1, "step": n, "loss": 1 / n} for n in range(1, 5001)]
    log.write_text("".join(json.dumps(line) + "\n" for line in steps) + log.read_text())
    from lorakit.report.charts import loss_chart, thinned

    assert thinned(range(5000), 300)[:2] + thinned(range(5000), 300)[-1:] == [0, 17, 4999]
    assert len(loss_chart(read_sources([run])[0].runs).svg) < 60_000


def test_more_runs_than_colours_differ_in_their_dashes():
    from lorakit.report.charts import look

    assert len({str(look(number)) for number in range(16)}) == 16


def test_charts_of_nothing_are_none():
    from lorakit.report.runs import Run

    nothing = Run("x", "", {})
    assert f1_chart([nothing]) is None
    assert energy_chart(nothing, 0, top_of([nothing])) is None


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda folder: None, ["nowhere"], "there is no folder"),
        (lambda folder: None, ["."], "holds neither comparison.json nor metrics.jsonl"),
        (lambda folder: (folder / "comparison.json").write_text("{"), ["."], "comparison.json is not JSON"),
        (lambda folder: (folder / "comparison.json").write_text('{"schema": 2}'), ["."], r"of schema 1 \(it says 2\)"),
        (lambda folder: (folder / "comparison.json").write_text("[]"), ["."], "is no comparison of schema 1"),
        (lambda folder: None, [str(RECORDED), str(RECORDED)], "a run is named twice"),
        (lambda folder: None, [str(RECORDED), "--label", "a", "--label", "b"], "there are 2 labels for 1 runs"),
        (lambda folder: None, [str(RECORDED), "--output", "no/where.html"], "cannot be written to no/where.html"),
    ],
)
def test_what_cannot_be_reported_is_one_line_status_2_and_leaves_nothing(
    make, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="2"):
        main(["report", *arguments])
    printed = capsys.readouterr()
    assert re.search(message, printed.err), printed.err
    assert printed.err.startswith("lorakit report: error: ") and len(printed.err.splitlines()) == 1
    assert printed.out == ""
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_writes_where_it_says(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"written: {run / 'report.html'}\n"
    assert main(["report", str(run), str(run / "lora"), "--label", "a", "--label", "b", "--f1", "0.5", "0.99"]) == 0
    page = (tmp_path / "report.html").read_text()
    rows = figures_of(page, "cost-table")
    assert {name.split(":")[0] for name in rows} == {"F1 0.5000", "F1 0.9900"}
    assert rows["F1 0.9900: Epoch"] == [(None, "not reached")] * 3
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(run), "--f1", "85"])
    assert "85 is not an F1 above 0 and up to 1" in capsys.readouterr().err


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


def test_a_record_is_left_as_it_was(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    sources = read_sources([run])
    kept = copy.deepcopy(sources)
    make_page(sources)
    assert sources == kept
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
