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
    corpus = script.read_corpus(script.RESULTS / "architectures.json")
    for path in (script.PAGE, script.RESULTS / "architectures.md"):
        assert script.table(rows) in path.read_text(), path
        assert script.real_line(corpus) in path.read_text(), path
    assert script.with_table(script.PAGE.read_text(), rows, corpus) == script.PAGE.read_text()


def test_predictions_of_real_sentences_are_those_one_by_one(script, bionlp2004, monkeypatch):
    """The published figures of 1,000 sentences, and a few of them again."""
    corpus = script.read_corpus(script.RESULTS / "architectures.json")
    assert list(corpus) == list(script.REAL)
    for row in corpus.values():
        assert (row["sentences"], row["tags"]) == (1000, 1) and row["packed"] < 1e-5
    few = script.lorakit.read_ner(bionlp2004)
    monkeypatch.setattr(script.lorakit, "read_ner", lambda source: replace(few, train=few.train[:20]))
    found = script.compare_on(bionlp2004)
    assert all(row["sentences"] == 20 and row["tags"] == 1 and row["packed"] < 1e-5 for row in found.values())


def test_the_published_rows_are_what_is_promised(script):
    """At least 50 of 60 train, none predicts other tags in a batch, and adapters load in both libraries."""
    rows = script.read(script.RESULTS / "architectures.json")
    assert sum(rows[name].trained for name in OPTIONS) >= 50
    for name, row in rows.items():
        assert row.targets or not row.trained, name  # one that asks for layers does not train by the defaults
        assert row.tags == 1 and max(row.plain, row.packed or 0) < 1e-5, name
        assert (row.packed is None) == (row.rows != "packed"), name
        assert row.saved == (("lorakit", "PEFT") if row.targets else None), name
        assert row.compiled in ("yes", script.TRACED) or row.compiled.startswith("n/a: "), name
        assert (row.compiled == "n/a: not packed") == (row.rows != "packed"), name
        assert bool(row.why) == (row.rows != "packed" or not row.trained), name


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


def test_compiled_training_is_compared_with_eager(script, base):
    asked = []

    def backend(graph, inputs, mode=None):
        asked.append(graph)
        return graph.forward

    usual = script.graphs.BACKEND
    assert script.compiles(base, backend) == script.TRACED
    assert asked and script.graphs.BACKEND == usual


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"compile": 0.5}, "no: weights differ by 5e-01"),
        ({"eager": 1e-3, "compile": 0.5}, "no: weights differ by 5e-01"),
    ],
)
def test_compiled_weights_that_differ_are_told(script, base, monkeypatch, more, said):
    def train(model, tokenizer, data, config):
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).add_(more.get(config.engine, 0))

    monkeypatch.setattr(script.lorakit, "train", train)
    assert script.compiles(base, "eager") == said


def test_a_few_weights_with_a_step_of_rounding_are_not_called_different(script, base, monkeypatch):
    def train(model, tokenizer, data, config):
        with torch.no_grad():
            trained = [p for p in model.parameters() if p.requires_grad]
            for parameter in trained:
                parameter.add_(1e-2)
            trained[0][0, 0] += 2e-4 * (config.engine == "compile")

    monkeypatch.setattr(script.lorakit, "train", train)
    assert script.compiles(base, "inductor") == "yes"


@pytest.mark.parametrize(("name", "why"), [("fnet", "not packed"), ("squeezebert", "asks for layers")])
def test_a_reason_against_compiling_is_short(script, tmp_path, name, why):
    script.put_base(name, tmp_path, None)
    assert script.compiles(tmp_path, "eager") == f"n/a: {why}"
    assert script.reason("X does not compile into one graph (…); train it with engine 'eager'") == "no single graph"


def test_an_adapter_that_loads_wrong_is_not_called_the_same(script, tmp_path):
    model = build("bert")
    assert script.adapted(model) == (12, "")
    other = lambda: build("bert", hidden_act="relu")  # noqa: E731
    assert script.reloaded(model, lambda: build("bert"), tmp_path / "adapter") == ("lorakit", "PEFT")
    assert script.reloaded(model, other, tmp_path / "adapter") == ()


def test_predictions_that_differ_in_a_batch_are_seen(script, tokenizer):
    model = build("fnet")
    mixes = "its Fourier transform mixes all tokens of a row, and padding changes its output"
    assert script.rows_of(model) == ("plain, of equal length", mixes)
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
    row = script.Row("sdpa", 0, "plain", None, 0.0, 1.0, False, None, why="it pools")
    text = script.table({"canine": row, "bert": replace(row, trained=True, targets=12, saved=("lorakit",))})
    assert "| it pools |" in text and script.NOT_RUN in text
    assert "| canine " in text and "not loaded; plain rows differed" in text and "**no**" in text
    assert "1 of 2 architectures train by the defaults, 0 of them packed (before: 1)." in text
    assert json.loads(json.dumps(asdict(row)))["packed"] is None


def test_the_command_names_what_was_compiled_into_kernels(script):
    row = script.Row("sdpa", 12, "packed", 0.0, 0.0, 1.0, True, ("lorakit",), "yes")
    command = "python benchmarks/architectures.py --compile aot_eager --bionlp2004 FOLDER"
    assert script.command({"bert": replace(row, compiled=script.TRACED)}) == command
    rows = {"bert": row, script.PRETRAINED: replace(row, compiled=script.TRACED)}
    assert (
        script.command(rows) == f"{command} --bert FOLDER; python benchmarks/architectures.py --compile inductor bert"
    )
