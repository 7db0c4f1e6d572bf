"""A corpus, a model trained in full and an adapter on a base, all tiny and random: random heads find many entities."""

import json

import pytest
import torch

import lorakit
from lorakit.data.decoding import remember_decoder
from lorakit.training.models import load_tagger
from tests.support.tiny import LABELS, make_tiny_model

SENTENCES = [
    "The IL-2 gene requires NF-kappa B ( p50/p65 ) .",
    "GATA-1 binds 5'-flanking DNA , 0.5 % of T cells .",
    "NF-kappa B",
    "No effect of TNF-alpha on HL-60 cells [ 12 ] was seen in the first 24 h .",
]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [{"tokens": text.split(), "tags": [1, *[0] * (len(text.split()) - 1)]} for text in SENTENCES]
    for name in ("train", "valid"):
        (folder / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "label.json").write_text(json.dumps({label: number for number, label in enumerate(LABELS)}))
    return folder


@pytest.fixture(scope="session")
def full(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("full") / "model"
    make_tiny_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def valid(tmp_path_factory, tokenizer):
    """The model of `full`, as if it had been trained with Viterbi."""
    folder = tmp_path_factory.mktemp("valid") / "model"
    model = make_tiny_model()
    remember_decoder(model, "viterbi")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(full, tmp_path_factory):
    """Of DoRA, with random updates, on the model of `full` as its base."""
    model, _ = load_tagger(model=str(full))
    lorakit.apply_lora(model, r=4, use_dora=True)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return lorakit.save_adapter(model, tmp_path_factory.mktemp("adapter") / "adapter")


@pytest.fixture
def words():
    return [text.split() for text in SENTENCES]


@pytest.fixture
def run_readme(monkeypatch, capsys):
    """Runs the Python of an export's README in its folder, for other words than it shows; returns what it printed."""

    def run(folder, words):
        shown = '["The", "IL-2", "gene", "(", "IL2", ")", "."]'
        code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
        assert shown in code
        monkeypatch.chdir(folder)
        capsys.readouterr()
        exec(compile(code.replace(shown, repr(words)), "README.md", "exec"), {})
        return capsys.readouterr().out

    return run
