"""Wh with bounds, and CO2 by the user's factor, wherever a training run is reported."""

import pytest

from lorakit.cli.__main__ import main
from lorakit.report.carbon import Carbon
from lorakit.report.energy_totals import energy_sentence
from lorakit.report.page import make_page, write_page
from lorakit.report.runs import read_sources
from lorakit.report.tables import as_markdown
from tests.support.reports import change

MEASURED = {"measured_kwh": 0.2, "measured_uncertainty_kwh": 0.0005, "estimated_kwh": None}
ESTIMATED = {"measured_kwh": None, "estimated_kwh": 0.00123, "estimated_range_kwh": [0.0004, 0.0021]}


@pytest.mark.parametrize(
    ("energy", "factor", "sentence"),
    [
        (MEASURED, None, "measured 200 Wh ± 0.5 Wh"),
        (MEASURED, 400.0, "measured 200 Wh ± 0.5 Wh; CO2 at 400 g/kWh 80 g ± 0.2 g"),
        (MEASURED, 0.0, "measured 200 Wh ± 0.5 Wh; CO2 at 0 g/kWh 0 g ± 0 g"),
        (ESTIMATED, None, "nothing measured; estimated 1.23 Wh, plausible from 0.4 to 2.1 Wh"),
        ({"measured_kwh": 0.2, "estimated_kwh": 0.001}, None, "measured 200 Wh; estimated 1 Wh"),  # an older record
    ],
)
def test_totals_stand_with_what_they_are_known_to(energy, factor, sentence):
    assert energy_sentence(energy, Carbon(factor)) == sentence
    assert factor is not None or energy_sentence(energy) == sentence


def test_an_estimate_has_no_co2():
    assert "no CO2, because nothing was measured" in energy_sentence(ESTIMATED, Carbon(400.0, 20.0, 10.0))


def test_the_page_and_the_tables_give_the_co2_that_was_asked_for(run, tmp_path):
    def measure(record):
        record["modes"]["lora"]["energy"] |= MEASURED | {"notes": ["GPU-1 is divided by MIG"]}

    record = change(run, measure)
    assert "CO2" not in make_page(read_sources([run])) + as_markdown(record)
    record = change(run, lambda record: record.update(co2_g_per_kwh=400.0))
    for text in (as_markdown(record), make_page(read_sources([run]))):
        assert "measured 200 Wh ± 0.5 Wh; CO2 at 400 g/kWh 80 g ± 0.2 g" in text
        assert "GPU-1 is divided by MIG" in text  # what the meter had to say
    page = write_page([run], tmp_path / "page.html", carbon=Carbon(50.0)).read_text()
    assert "CO2 at 50 g/kWh 10 g ± 0.025 g" in page and "at 400 g/kWh" not in page


def test_the_report_gives_the_sci_of_the_users_factors(run, tmp_path, capsys):
    change(run, lambda record: record["modes"]["lora"]["energy"].update(MEASURED))
    page = tmp_path / "page.html"
    command = ["report", str(run), "--output", str(page), "--sci", "10"]
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "--sci needs a number above 0 and your own factors: --co2 400" in capsys.readouterr().err
    assert not page.exists()
    assert main([*command, "--co2", "400", "--embodied", "20"]) == 0
    sci = "SCI (ISO 21031) of the measured part: 10 g of CO2 per unit = (80 g for energy + 20 g embodied) / 10 units"
    assert f"CO2 at 400 g/kWh 80 g ± 0.2 g; {sci}" in page.read_text()
