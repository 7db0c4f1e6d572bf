import json
from pathlib import Path

from lorakit.report.picture import draw_comparison, record_digest
from lorakit.report.tables import as_markdown
from tests.support.reports import UNKNOWN

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


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


def test_the_readmes_picture_is_what_the_code_draws_from_its_record(tmp_path):
    import matplotlib.image
    import numpy as np
    from matplotlib import __version__

    record, stored = json.loads((RESULTS / "embedded.json").read_text()), RESULTS / "embedded.png"
    data = stored.read_bytes()
    assert record_digest(record).encode() in data, "embedded.png was drawn from another record than embedded.json"
    if f"Matplotlib version{__version__}".encode() not in data:
        return  # another version places text elsewhere
    draw_comparison(record, tmp_path / "again.png")
    again, kept = (matplotlib.image.imread(path)[..., :3] for path in (tmp_path / "again.png", stored))
    assert again.shape == kept.shape
    assert (np.abs(again - kept).max(axis=2) > 0.1).mean() < 1e-4, (
        "draw_comparison(embedded.json) gives another picture"
    )


def test_the_tables_beside_it_are_what_the_code_writes_from_its_record():
    record = json.loads((RESULTS / "embedded.json").read_text())
    assert (RESULTS / "embedded.md").read_text() == as_markdown(record)


def test_a_name_with_two_dollar_signs_is_not_read_as_a_formula(record, tmp_path):
    draw_comparison({**record, "model": "a$b\\frac$c"}, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
