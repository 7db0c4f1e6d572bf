from pathlib import Path

import pytest

from .tiny import MINI, ROOT, make_tiny_model


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MINI)


@pytest.fixture
def bionlp2004() -> Path:
    folder = ROOT.parent / "shared" / "bionlp2004"
    if not folder.is_dir():
        pytest.skip("the real corpus is not beside the project (../shared/bionlp2004)")
    return folder


@pytest.fixture
def tiny_model():
    """A factory of small random token classifiers that fit the embedded tokenizer; dropout 0 unless asked for."""
    return make_tiny_model
