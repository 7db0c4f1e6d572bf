from pathlib import Path

import pytest

from lorakit.adapters.storage import save_adapter
from tests.support.lora_models import trained_roberta


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The folder of a trained adapter, for one test to change."""
    return save_adapter(trained_roberta(bias="all", lora_alpha=8), tmp_path / "adapter")
