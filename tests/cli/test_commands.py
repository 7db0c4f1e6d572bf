"""train, evaluate, predict and params as a user calls them, in this process, on the embedded base."""

import io
import json
import re
from html.parser import HTMLParser

import pytest

import lorakit
from lorakit.cli.__main__ import main
from lorakit.report.entities import Tagging, as_html, as_table, as_terminal
from lorakit.training.models import load_tagger, save_model
from lorakit.training.prediction import Entity
from tests.support.tiny import LABELS, MINI, ROOT, make_tiny_model

SENTENCES = [
    "IL-2 gene expression requires NF-kappaB.",
    "",
    "No <b>entity</b> & nothing \x1b[31mred 😀",
    "p50/p65 (GATA-1) binds the IL-2 gene.",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    lines = [
        {"tokens": ["IL-2", "gene", "in", "T", "cells", "."], "tags": [1, 2, 0, 0, 0, 0]},
        {"tokens": ["NF-kappaB", "binds", "the", "GATA-1", "gene"], "tags": [3, 0, 0, 1, 2]},
    ]
    for name in ("train", "valid", "test"):
        (folder / f"{name}.json").write_text("".join(json.dumps(line) + "\n" for line in lines * 12))
    (folder / "label.json").write_text(json.dumps({label: number for number, label in enumerate(LABELS)}))
    return folder


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A folder trained in both modes, with settings from a file."""
    folder = tmp_path_factory.mktemp("runs")
    settings = folder / "settings.yaml"
    settings.write_text(f"model: {MINI}\ndataset: {corpus}\nepochs: 9\nlearning-rate: 1e-3\nbatch_size: 4\nr: 4\n")
    done = main(
        ["train", "--config", str(settings), "--mode", "both", "--epochs", "2", "--output-dir", str(folder / "x")]
    )
    assert done == 0
    return folder / "x"


def saved(run, mode):
    return ["--adapter", str(run / "lora" / "adapter")] if mode == "lora" else ["--model", str(run / "full" / "model")]


def test_train_writes_what_the_other_commands_take(run):
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {"report.html", "comparison.json", "comparison.md", "comparison.png", "lora/adapter/lorakit.json"} < files
    assert {"full/model/model.safetensors", "full/model/tokenizer.json", "full/model/config.json"} < files
    assert {f"{mode}/{name}" for mode in ("full", "lora") for name in ("metrics.jsonl", "energy.jsonl")} < files
    record = json.loads((run / "comparison.json").read_text())
    assert record["command"].startswith("lorakit train --config ")
    full, lora = record["modes"]["full"], record["modes"]["lora"]
    assert (full["epochs"], full["batch_size"], full["learning_rate"], lora["adapter"]["r"]) == (2, 4, 1e-3, 4)
    assert lora["test"]["f1"] > 0.5  # else the tests below compare nothing


def test_top_layers_alone_are_adapted_and_those_below_kept(corpus, tmp_path):
    options = ["--target-modules", "query", "dense", "--layers-to-transform", "2", "3"]
    options += ["--cache-prefix", "--dropout", "0", "--epochs", "1"]
    base = ["train", "--model", str(MINI), "--dataset", str(corpus), "--mode", "lora", "--output-dir", str(tmp_path)]
    assert main([*base, *options]) == 0
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    kept = [line for line in lines if line["event"] == "cache_prefix"]
    assert [line["layers"] for line in kept] == [2]
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["modes"]["lora"]["adapter"]["layers_to_transform"] == [2, 3]


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_what_was_saved_scores_as_it_did_at_the_end_of_training(run, corpus, mode, tmp_path, capsys):
    scores = tmp_path / "new" / "scores.json"
    assert main(["evaluate", *saved(run, mode), "--dataset", str(corpus), "--json", str(scores)]) == 0
    wanted = json.loads((run / "comparison.json").read_text())["modes"][mode]["test"]
    found = json.loads(scores.read_text())
    assert {key: found[key] for key in wanted} == {**wanted, "loss": pytest.approx(wanted["loss"], rel=1e-6)}
    assert (found["split"], found["sentences"]) == ("test", 24)
    table = capsys.readouterr().out
    for name in ("all", "DNA", "protein"):
        assert re.search(rf"^\| {name} +\|", table, re.MULTILINE)
    assert f"{wanted['strict']['f1']:.4f}" in table


def test_json_to_standard_output_replaces_the_table(run, corpus, capsys):
    assert (
        main(["evaluate", *saved(run, "lora"), "--dataset", str(corpus), "--split", "validation", "--json", "-"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["split"] == "validation"


def predicted(run, mode, capsys, *arguments):
    assert main(["predict", *saved(run, mode), *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_predict_prints_what_the_library_finds(run, mode, capsys):
    folder = str(run / "lora" / "adapter") if mode == "lora" else None
    model, tokenizer = load_tagger(folder, None if folder else str(run / "full" / "model"))
    wanted = lorakit.predict(model, tokenizer, SENTENCES)
    assert sum(map(len, wanted)) >= 3
    lines = [json.loads(line) for line in predicted(run, mode, capsys, *SENTENCES, "--format", "jsonl").splitlines()]
    assert [line["text"] for line in lines] == SENTENCES
    assert [[Entity(**entity) for entity in line["entities"]] for line in lines] == wanted
    table = predicted(run, mode, capsys, *SENTENCES).splitlines()
    assert table[0].split() == ["text", "characters", "words", "type", "score", "entity"]
    rows = [(str(i), f"{e.start}-{e.end}", e.type) for i, row in enumerate(wanted, 1) for e in row]
    assert [(row.split()[0], row.split()[1], row.split()[3]) for row in table[1:]] == rows


def test_conll_is_read_again_with_the_same_tags(run, capsys, tmp_path):
    text = predicted(run, "lora", capsys, SENTENCES[0], SENTENCES[3], "--format", "conll")
    (tmp_path / "found.conll").write_text(text, encoding="utf-8")
    data = lorakit.read_ner(tmp_path / "found.conll", scheme="iob2")
    model, tokenizer = load_tagger(str(run / "lora" / "adapter"))
    assert [list(s.tags) for s in data.train] == lorakit.predict(model, tokenizer, [s.words for s in data.train])


def test_a_file_standard_input_and_arguments_are_the_same_texts(run, capsys, tmp_path, monkeypatch):
    wanted = predicted(run, "lora", capsys, *SENTENCES, "--format", "jsonl")
    for end in ("\n", "\r\n"):
        data = b"\xef\xbb\xbf" + end.join([*SENTENCES, ""]).encode()
        (tmp_path / "texts.txt").write_bytes(data)
        found = predicted(run, "lora", capsys, "--file", tmp_path / "texts.txt", "--format", "jsonl")
        assert found == wanted
        stdin = io.TextIOWrapper(io.BytesIO(data.removesuffix(end.encode())))  # the last end of line may be missing
        monkeypatch.setattr("sys.stdin", stdin)
        assert predicted(run, "lora", capsys, "--format", "jsonl") == wanted


def test_an_output_file_is_whole_and_its_ending_names_the_format(run, capsys, tmp_path):
    wanted = predicted(run, "lora", capsys, *SENTENCES, "--format", "jsonl")
    assert predicted(run, "lora", capsys, *SENTENCES, "--output", tmp_path / "new" / "found.jsonl") == ""
    assert (tmp_path / "new" / "found.jsonl").read_text(encoding="utf-8") == wanted
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["found.jsonl"]


def test_colours_come_on_a_terminal_unless_they_are_refused(run, capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" not in predicted(run, "lora", capsys, SENTENCES[0])
    assert "\x1b" in predicted(run, "lora", capsys, SENTENCES[0], "--format", "terminal")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\x1b" in predicted(run, "lora", capsys, SENTENCES[0])
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in predicted(run, "lora", capsys, SENTENCES[0])


def test_no_entity_is_said_and_is_no_error(run, capsys):
    assert main(["predict", *saved(run, "lora"), ""]) == 0
    assert "no entity in 1 texts" in capsys.readouterr().err


NASTY = Tagging(
    'a <script>alert("x")</script> & \x1b]0;title\x07 \u202eIL-2\n', [], [], [Entity('D"<A', 2, 29, "", 0.5, 0, 1)]
)
NASTY = NASTY._replace(entities=[Entity('D"<A', 2, 29, NASTY.text[2:29], 0.5, 0, 1)])


def test_html_shows_every_character_and_runs_none():
    class Reader(HTMLParser):
        tags, text = set(), ""

        def handle_starttag(self, tag, attributes):
            self.tags.add(tag)

        def handle_data(self, data):
            self.text += data

    page = as_html([NASTY])
    reader = Reader()
    reader.feed(page)
    assert reader.tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "ul",
        "li",
        "mark",
        "b",
        "small",
        "p",
    }
    assert NASTY.text.replace(NASTY.entities[0].text, NASTY.entities[0].text + 'D"<A0.50') in reader.text
    assert not re.search(r"https?://|src=|href=", page)


def test_a_terminal_obeys_no_character_of_the_text():
    shown = re.sub(r"\x1b\[[\d;]*m", "", as_terminal([NASTY]))
    assert shown.endswith("\\x1b]0;title\\x07 \\u202eIL-2\\n\n")
    assert "\x1b" not in shown + as_table([NASTY])


def test_params_counts_the_study_from_a_configuration_alone(tmp_path, capsys):
    shape = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "model_type": "roberta"}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    flags = ["--num-labels", "11", "--r", "16", "--lora-alpha", "16", "--target-modules", "query", "value"]
    assert main(["params", str(tmp_path), *flags, "--bias", "all", "--json", str(tmp_path / "counts.json")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^\| full +\| 124,063,499 \| 124,063,499 \| 100.0000 % \|$", text, re.MULTILINE)
    assert re.search(r"^\| LoRA +\| +700,427 \| 124,653,323 \| +0.5619 % \|$", text, re.MULTILINE)
    assert "589,824 in updates, 102,144 biases, 8,459 in the head" in text
    assert "PEFT would print 700,427 of 124,661,782" in text
    assert json.loads((tmp_path / "counts.json").read_text())["lora"]["peft_total"] == 124_661_782


def test_params_counts_what_is_trained_whole_apart_and_once(capsys):
    names = ["embeddings", "word_embeddings", "LayerNorm"]
    options = ["--num-labels", "11", "--r", "2", "--bias", "all", "--modules-to-save", *names]
    assert main(["params", str(MINI), *options]) == 0
    text = capsys.readouterr().out
    # embeddings: 8,192 words, 514 positions and a type of 256, a LayerNorm; eight LayerNorms above
    embeddings, norms = (8192 + 514 + 1) * 256, 9 * 2 * 256
    assert f"2,827 in the head, {embeddings + norms:,} in {', '.join(names)}\n" in text
    biases = 4 * (4 * 256 + 1024 + 256)  # of the linear layers
    assert f" {biases:,} biases, " in text


def test_a_module_trained_whole_is_in_the_adapter(corpus, tmp_path, capsys):
    """Its weights move, are saved, and are put back."""
    options = ["--modules-to-save", "word_embeddings", "--r", "2", "--epochs", "1"]
    assert main(["train", "--model", str(MINI), "--dataset", str(corpus), *options, "--output-dir", str(tmp_path)]) == 0
    wanted = json.loads((tmp_path / "comparison.json").read_text())["modes"]["lora"]
    assert wanted["adapter"]["modules_to_save"] == ["word_embeddings"]
    assert wanted["trainable_parameters"] > 8192 * 256
    adapter = ["--adapter", str(tmp_path / "adapter"), "--dataset", str(corpus), "--json", "-"]
    capsys.readouterr()
    assert main(["evaluate", *adapter]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(wanted["test"]["loss"], rel=1e-6)


def test_params_counts_other_heads(tmp_path, capsys):
    shape = {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    assert main(["params", str(tmp_path), "--task", "causal-lm", "--r", "4", "--bias", "none"]) == 0
    assert "0 biases, 0 in the head" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "params", "energy"])
def test_help_of_each_command_shows_examples(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert f"examples:\n  lorakit {command}" in text
    assert "None" not in text


@pytest.mark.parametrize("command", ["run", "doctor", "merge"])
def test_help_of_each_energy_command_shows_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["energy", command, "--help"])
    assert f"examples:\n  lorakit energy {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "the following arguments are required: --model, --dataset"),
        (["train", "--model", "./nowhere", "--dataset", "CORPUS"], "there is no model folder './nowhere'"),
        (["train", "--model", MINI, "--dataset", "./nowhere"], "nowhere"),
        (["train", "--model", MINI, "--dataset", "CORPUS", "--r", "0"], "r must be a whole number of at least 1"),
        (["train", "--model", MINI, "--dataset", "CORPUS", "--accumulate", "0"], "accumulate is 0"),
        (["train", "--model", MINI, "--dataset", "CORPUS", "--output-dir", "CORPUS/test.json/x"], "cannot be written"),
        (["train", "--epoch", "3"], "lorakit train: error: "),
        (["train", "--model", MINI, "--dataset", "CORPUS", "--layers-to-transform", "9"], "layers_to_transform"),
        (
            ["train", "--model", MINI, "--dataset", "CORPUS", "--cache-prefix", "--bias", "all"],
            "(LoRA: bias other than 'all', not in modules_to_save)",
        ),
        (
            ["train", "--model", MINI, "--dataset", "CORPUS", "--cache-prefix"],
            "layer 0 is trained, so no layer is constant",
        ),
        (["evaluate", "--dataset", "CORPUS"], "give --adapter FOLDER_OR_ID, or --model FOLDER_OR_ID"),
        (["evaluate", "--adapter", "LORA", "--dataset", "CORPUS/train.json"], "has no test set; it has train"),
        (["predict", "--adapter", "./nowhere", "x"], "no adapter folder nowhere"),
        (["predict", "--adapter", "RUN", "x"], "did you mean RUN/lora/adapter?"),
        (["predict", "--model", "LORA", "x"], "is a LoRA adapter: give it as --adapter"),
        (["predict", "--model", MINI, "x"], "it is a base without a trained head (classifier.bias, classifier.weight"),
        (["predict", "--adapter", "LORA", "--model", "./nowhere", "x"], "there is no model folder './nowhere'"),
        (["predict", "--adapter", "LORA", "--file", "./nowhere"], "No such file or directory: 'nowhere'"),
        (["predict", "--adapter", "LORA", "--file", "x.txt", "x"], "texts are given, and --file x.txt"),
        (["predict", "--adapter", "LORA", "IL-\udcff"], "half a surrogate pair"),
        (["predict", "--adapter", "LORA", "--output", "CORPUS", "x"], "is a folder; give a file"),
        (["predict", "--adapter", "LORA", "--format", "xml", "x"], "invalid choice: 'xml'"),
        (["params", "./nowhere"], "there is no './nowhere'; give a folder with config.json"),
        (["params", "CORPUS"], "config.json is not there"),
        (["params", MINI, "--target-modules", "qery"], "qery"),
        (["params", MINI, "--modules-to-save", "embedings"], "did you mean 'embeddings'"),
        (["params", MINI, "--num-labels", "0"], "--num-labels is 0"),
        (["energy", "run", "--co2", "much", "--", "true"], "--co2: much is not a number of 0 or more"),
        (["energy", "run", "--config", "none.yaml", "--", "true"], "--config none.yaml: No such file or directory"),
        (["report", "x", "--f1", "high"], "--f1: high is not an F1 above 0 and up to 1"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_input_is_one_line_status_2_and_leaves_nothing(
    arguments, message, run, corpus, tmp_path, monkeypatch, capsys
):
    names = {"CORPUS": str(corpus), "LORA": str(run / "lora" / "adapter"), "RUN": str(run)}

    def filled(text):
        return re.sub(r"\b(CORPUS|LORA|RUN)\b", lambda match: names[match[0]], str(text))

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([filled(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert filled(message) in printed.err
    assert len(printed.err.splitlines()) == 1, printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_utf8_is_named_with_its_line(run, tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes(b"IL-2\nna\xefve\n")
    with pytest.raises(SystemExit, match="2"):
        main(["predict", *saved(run, "lora"), "--file", str(tmp_path / "latin.txt")])
    assert "latin.txt:2: not UTF-8" in capsys.readouterr().err


def test_an_adapter_says_what_it_lacks(run, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in (run / "lora" / "adapter").iterdir():
        (adapter / path.name).write_bytes(path.read_bytes())
    (adapter / "lorakit.json").unlink()
    with pytest.raises(ValueError, match="does not say which labels its head has: lorakit.json is missing"):
        load_tagger(str(adapter))
    (adapter / "lorakit.json").write_bytes((run / "lora" / "adapter" / "lorakit.json").read_bytes())
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="is not the file that was saved with lorakit.json"):
        load_tagger(str(adapter))


def test_a_base_that_is_elsewhere_is_given_by_hand(run, tmp_path, monkeypatch):
    monkeypatch.setattr("lorakit.training.models.base_and_labels", lambda folder: ("/nowhere/base", list(LABELS)))
    adapter = str(run / "lora" / "adapter")
    with pytest.raises(ValueError, match="'/nowhere/base'.*adapter_config.json names this base: give it with --model"):
        load_tagger(adapter)
    model, _ = load_tagger(adapter, str(MINI))
    assert model.config.id2label == dict(enumerate(LABELS))
    monkeypatch.setattr("lorakit.training.models.base_and_labels", lambda folder: (None, list(LABELS)))
    with pytest.raises(ValueError, match=r"does not name the base \(base_model_name_or_path\); give it with --model"):
        load_tagger(adapter)


def test_a_saved_model_replaces_an_earlier_one_whole_or_not_at_all(tokenizer, tmp_path, monkeypatch):
    first, second = make_tiny_model(seed=1), make_tiny_model(seed=2)
    folder = tmp_path / "deep" / "model"
    save_model(first, tokenizer, folder)
    monkeypatch.setattr(type(tokenizer), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_model(second, tokenizer, folder)
    monkeypatch.undo()
    texts = ["IL-2 gene expression"] * 2
    assert lorakit.predict(*load_tagger(model=str(folder)), texts) == lorakit.predict(first, tokenizer, texts)
    save_model(second, tokenizer, folder)
    assert lorakit.predict(*load_tagger(model=str(folder)), texts) == lorakit.predict(second, tokenizer, texts)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_command_and_the_example_share_flags_and_defaults(capsys):
    from tests.integration.test_bionlp import bionlp

    texts = []
    for call in (main, lambda argv: bionlp.main(argv[1:])):
        with pytest.raises(SystemExit, match="0"):
            call(["train", "--help"])
        texts.append(capsys.readouterr().out)
    flags = [set(re.findall(r"^  (--[\w-]+)", text, re.MULTILINE)) for text in texts]
    assert flags[1] - flags[0] == {"--study"}
    assert (ROOT / "examples" / "bionlp.py").read_text().count("add_argument(") == 2
