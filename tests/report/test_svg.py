import re

from lorakit.report.page import make_page
from lorakit.report.palette import DARK, LIGHT
from lorakit.report.runs import read_sources
from lorakit.report.svg import STAND_INS, draw, plain, titled
from tests.support.reports import RECORDED


def test_drawings_take_every_colour_from_the_page():
    page = make_page(read_sources([RECORDED]))
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    for drawing in drawings:
        assert not re.search(r"(fill|stroke)\s*[:=]\s*\"?(#|rgb|black|white)", drawing)
        assert not any(stand_in in drawing for stand_in in STAND_INS.values())
    used = {name for drawing in drawings for name in re.findall(r"var\(--(\w+)\)", drawing)}
    assert {"ink", "muted", "run1", "run2", "cpu", "ram"} <= used <= LIGHT.keys() == DARK.keys()


def test_names_in_drawings_are_short_printable_and_not_taken_for_mathematics():
    assert plain("_a\n\x00b", 20) == "\u200b_a  b"
    assert plain("x" * 50 + "end", 10) == "…xxxxxxend"
    assert len(plain("_" * 50, 10)) <= 11


def test_a_drawing_has_its_own_ids_a_title_and_the_texts_as_they_are():
    svg = draw("x", lambda figure: figure.text(0, 0, "a<b $c$"), 72, 36)
    assert svg.startswith('<svg viewBox="0 0 72 36" role="img" aria-labelledby="x-title" aria-describedby="x-desc"')
    assert "a&lt;b $c$" in svg
    assert all(name.startswith("x-") for name in re.findall(r'\bid="([^"]+)"', svg))
    shown = titled(svg, "x", "A & B", "what it shows")
    assert '<title id="x-title">A &amp; B</title><desc id="x-desc">what it shows</desc>' in shown
