import shutil
from pathlib import Path

import pytest

from lorakit.report.comparison import comparison_record
from tests.support.reports import RECORDED, mode_values


@pytest.fixture
def run(tmp_path):
    """A copy of the recorded run that a test may change."""
    return Path(shutil.copytree(RECORDED, tmp_path / "bionlp"))


@pytest.fixture
def record():
    """A comparison of both modes."""
    lora = mode_values(f1=0.736667, ram=0.0005, adapter={"r": 8, "peft_total_parameters": 1010})
    return comparison_record("python x.py", {"torch": "2"}, "m", "d", {"full": mode_values(trained=1000), "lora": lora})
