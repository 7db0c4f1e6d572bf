from lorakit.report.picture import draw_comparison
from tests.support.reports import UNKNOWN


def test_a_run_in_which_nothing_could_be_measured_is_still_drawn(record, tmp_path):
    for values in record["modes"].values():
        values["energy"] = dict.fromkeys(("gpu", "cpu", "ram"), UNKNOWN)
        values["energy"] |= {"measured_kwh": None, "estimated_kwh": None}
        values["history"] = []
    draw_comparison(record, tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_one_mode_alone_is_drawn(record, tmp_path):
    draw_comparison({**record, "modes": {"lora": record["modes"]["lora"]}}, tmp_path / "comparison.png")
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
