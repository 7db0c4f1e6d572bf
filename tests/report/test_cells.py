import pytest

from lorakit.report.cells import Cell, number, watt_hours


def test_a_number_is_shown_with_fixed_digits_and_kept_exactly():
    assert number(-1 / 3, sign=True) == Cell("−0.3333", repr(-1 / 3))
    assert number(1234.5, 0) == Cell("1,234", "1234.5")
    assert number(None, unknown="not published") == Cell("not published")
    assert number(-0.00004, sign=True) == Cell("+0.0000", repr(-0.00004))  # no zero is negative


@pytest.mark.parametrize(
    ("wh", "text"), [(0.01234, "0.0123"), (1.2345, "1.234"), (12.345, "12.35"), (123.45, "123.5"), (1234.5, "1,234")]
)
def test_watt_hours_have_about_four_significant_digits(wh, text):
    assert watt_hours(wh, "measured", "–") == Cell(text, repr(wh), "measured")


def test_unknown_watt_hours_are_words():
    assert watt_hours(None, "unavailable", "–") == Cell("–", None, "unavailable")
    assert watt_hours(None, "measured", "nothing measured") == Cell("nothing measured")
