"""The picture of a report in docs/training.md is of the page that the code makes today."""

import pytest

from tests.support.tiny import ROOT


@pytest.fixture
def report_page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.chdir(ROOT)
    import report_page

    return report_page


def test_the_picture_shows_the_page_that_the_code_makes(report_page):
    digest = report_page.page_digest(report_page.report_page())
    assert digest.encode() in (ROOT / "benchmarks" / "results" / "report.png").read_bytes(), (
        "the page has changed since its picture was taken: python benchmarks/report_page.py"
    )


def test_another_page_has_another_digest_and_another_version_has_not(report_page):
    page = report_page.report_page()
    assert report_page.page_digest(page.replace("Scores", "Results")) != report_page.page_digest(page)
    assert report_page.page_digest(page.replace("Made by lorakit", "Made by lorakit 9")) == report_page.page_digest(
        page
    )
