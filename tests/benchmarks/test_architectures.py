"""The table of architectures: what its script finds out, and that the published one holds together."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.support.token_classifiers import OPTIONS, build

ROOT = Path(__file__).parents[2]
# transformers' own, of its loading
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture
def script(monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import architectures

    return architectures


def test_the_documented_table_is_that_of_the_results(script):
    rows = script.read(script.RESULTS / "architectures.json")
    assert [name for name in rows if name != script.PRETRAINED] == list(OPTIONS)
    for path in (script.PAGE, script.RESULTS / "architectures.md"):
        assert script.table(rows) in path.read_text(), path
    assert script.with_table(script.PAGE.read_text(), rows) == script.PAGE.read_text()


def test_the_published_rows_are_what_is_promised(script):
    """At least 50 of 60 train, none predicts other tags in a batch, and adapters load in both libraries."""
    rows = script.read(script.RESULTS / "architectures.json")
    assert sum(rows[name].trained for name in OPTIONS) >= 50
    for name, row in rows.items():
        assert row.targets or not row.trained, name  # one that asks for layers does not train by the defaults
        assert row.tags == 1 and max(row.plain, row.packed or 0) < 1e-5, name
        assert (row.packed is None) == (row.rows != "packed"), name
        assert row.saved == (("lorakit", "PEFT") if row.targets else None), name
        assert row.compiled == script.NOT_RUN or not row.compiled.startswith("no"), name


def test_a_run_finds_out_about_a_model_and_keeps_what_is_known(script, tmp_path, capsys):
    out = ["--output-dir", str(tmp_path)]
    assert script.main(["roberta", *out]) == 0
    rows = script.read(tmp_path / "architectures.json")
    found = rows["roberta"]
    committed = script.read(script.RESULTS / "architectures.json")["roberta"]
    same = {"packed": committed.packed, "plain": committed.plain, "compiled": committed.compiled}
    assert replace(found, **same) == committed and max(found.packed, found.plain) < 1e-6
    assert "| roberta " in capsys.readouterr().out
    everything = {name: replace(found, attention="known") for name in OPTIONS}
    script.write(everything, tmp_path, "a command")
    assert script.main(out) == 0  # nothing is missing
    assert script.read(tmp_path / "architectures.json") == everything


@pytest.fixture
def base(script, tmp_path):
    script.put_base("roberta", tmp_path, None)
    return tmp_path


def test_compiled_training_is_compared_with_eager(script, base, monkeypatch):
    monkeypatch.setattr("lorakit.training.graphs.BACKEND", "eager")
    assert script.compiles(base) == "yes"


def test_compiled_weights_that_differ_are_told(script, base, monkeypatch):
    def train(model, tokenizer, data, config):
        if config.engine == "compile":
            with torch.no_grad():
                next(p for p in model.parameters() if p.requires_grad).add_(0.5)

    monkeypatch.setattr(script.lorakit, "train", train)
    assert script.compiles(base) == "no: weights differ by 5e-01"


def test_a_reason_against_compiling_is_short(script, tmp_path):
    script.put_base("fnet", tmp_path, None)
    assert script.compiles(tmp_path) == "n/a: not packed"


def test_an_adapter_that_loads_wrong_is_not_called_the_same(script, tmp_path):
    model = build("bert")
    assert script.adapted(model) == 12
    other = lambda: build("bert", hidden_act="relu")  # noqa: E731
    assert script.reloaded(model, lambda: build("bert"), tmp_path / "adapter") == ("lorakit", "PEFT")
    assert script.reloaded(model, other, tmp_path / "adapter") == ()


def test_predictions_that_differ_in_a_batch_are_seen(script, tokenizer):
    model = build("fnet")
    assert script.rows_of(model) == "plain, of equal length"
    assert script.compare(model, tokenizer, "off")[1] == 1

    class Unlike(torch.nn.Module):
        """Says something else about a batch than about a sentence alone."""

        def __init__(self):
            super().__init__()
            self.inner, self.config = model, model.config

        def forward(self, ids):
            return (-self.inner(ids)[0],)

    monkey = script.tag_words
    try:
        script.tag_words = lambda _, *given, **more: monkey(model, *given, **more)
        difference, tags = script.compare(Unlike(), tokenizer, "off")
    finally:
        script.tag_words = monkey
    assert difference > 0.01 and tags < 1


def test_the_table_says_what_is_not_known(script):
    row = script.Row("sdpa", 0, "plain", None, 0.0, 1.0, False, None)
    text = script.table({"canine": row, "bert": replace(row, trained=True, targets=12, saved=("lorakit",))})
    assert "| canine " in text and "not loaded; plain rows differed" in text and "**no**" in text
    assert "1 of 2 architectures train by the defaults, 0 of them packed (before: 1)." in text
    assert json.loads(json.dumps(asdict(row)))["packed"] is None
