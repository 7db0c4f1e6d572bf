"""The picture of `lorakit data show` has the terminal's colours."""

import re
import sys
from pathlib import Path

import pytest

from tests.support.tiny import ROOT


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import data_show

    return data_show


def test_colours_become_spans_that_are_closed(benchmark) -> None:
    text = "a < b \x1b[44;30m x \x1b[0m\x1b[1m X\x1b[0m."
    assert benchmark.as_html(text) == (
        'a &lt; b <span style="background:#5b9bd5;color:#111;"> x </span><span style="font-weight:bold;"> X</span>.'
    )


def test_the_command_shows_colours_on_its_terminal(benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    status, shown = benchmark.on_terminal([sys.executable, "-m", "lorakit.cli", "data", "show", "examples/conll"])
    assert status == 0
    assert "\x1b[42;30m digoxin \x1b[0m\x1b[1m DRUG\x1b[0m" in shown
    assert "annotations: 192 read, 192 kept" in re.sub(r"\x1b\[[\d;]*m", "", shown)
    status, shown = benchmark.on_terminal([sys.executable, "-m", "lorakit.cli", "data", "show", "examples/nothing"])
    assert (status, shown.count("\n")) == (2, 1)


def test_a_machine_without_chromium_says_how_to_get_it(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(benchmark.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["--output-dir", str(tmp_path)])
    assert stopped.value.code == 2 and "apt-get install chromium" in capsys.readouterr().err


def test_the_picture_is_beside_the_results() -> None:
    assert (ROOT / "benchmarks" / "results" / "data_show.png").read_bytes().startswith(b"\x89PNG")
