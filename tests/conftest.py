import logging
import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: more threads than cores would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.support.tiny import MINI, ROOT, make_tiny_model


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """`pytest -n 2` deals out whole files, whose tests share what is dear to make, the last of them short ones."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist, config.option.loadscopereorder = "loadfile", False


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_this_user(tmp_path_factory):
    """A calibration that whoever runs the tests made for their machine would replace its estimates."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(autouse=True)
def logging_stays_on():
    """A test that leaves logging disabled would blind every later one on its worker that reads the log."""
    yield
    left = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    assert left == logging.NOTSET, f"logging is still disabled below level {left}"


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
