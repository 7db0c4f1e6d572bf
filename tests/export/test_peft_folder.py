"""The folder for PEFT: its labels survive."""

import shutil

import pytest
import torch

import lorakit
from lorakit.cli.__main__ import main
from lorakit.training.calibration_file import Calibration, load_calibration, save_calibration
from lorakit.training.models import load_tagger
from tests.support.tiny import LABELS

pytest.importorskip("peft", reason="peft is not installed (extra peft)")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own
def test_peft_loads_it_with_its_labels_and_finds_the_same(adapter, full, corpus, words, tmp_path):
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

    out = tmp_path / "out"
    assert main(["export", str(adapter), str(out), "--to", "peft", "--dataset", str(corpus)]) == 0
    config = AutoConfig.from_pretrained(out)
    assert tuple(config.id2label[i] for i in range(config.num_labels)) == LABELS
    model = PeftModel.from_pretrained(AutoModelForTokenClassification.from_pretrained(full, config=config), out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    for row, tags in zip(words, lorakit.predict(*load_tagger(str(adapter)), words), strict=True):
        batch = tokenizer([row], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            classes = model(**batch).logits.argmax(-1)[0].tolist()
        ids = batch.word_ids(0)
        assert [LABELS[classes[ids.index(i)]] for i in range(len(row))] == tags
    lorakit.load_adapter(AutoModelForTokenClassification.from_pretrained(full), out)  # its digests still agree


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT's own
def test_the_lines_of_the_readme_find_the_same_where_the_base_has_moved(
    adapter, full, corpus, words, tmp_path, run_readme
):
    base = shutil.copytree(full, tmp_path / "moved")
    out = tmp_path / "out"
    command = ["export", str(adapter), str(out), "--to", "peft", "--dataset", str(corpus), "--model", str(base)]
    assert main(command) == 0
    assert f"base = {str(base)!r}" in (out / "README.md").read_text()
    wanted = lorakit.predict(*load_tagger(str(adapter)), words)
    assert [run_readme(out, row) for row in words] == [f"{tags}\n" for tags in wanted]


def test_the_calibration_comes_along_and_no_warning_is_shown(adapter, corpus, tmp_path):
    calibrated = shutil.copytree(adapter, tmp_path / "calibrated")
    save_calibration(Calibration(2.0, {}, "viterbi"), calibrated)
    out = tmp_path / "out"
    assert main(["export", str(calibrated), str(out), "--to", "peft", "--dataset", str(corpus)]) == 0
    assert load_calibration(out) == Calibration(2.0, {}, "viterbi")


def test_a_model_trained_in_full_has_no_adapter(full, corpus, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["export", str(full), str(tmp_path / "out"), "--to", "peft", "--dataset", str(corpus)])
    assert "was fine-tuned in full and has no adapter for PEFT; export it --to hf" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
