import pytest

from lorakit.cli import notes
from lorakit.cli.__main__ import main
from lorakit.cli.notes import Notes, case_note, corpus_counts, describe_corpus, split_notes, types_by_split
from lorakit.cli.parser import Parser
from lorakit.data.corpus import NerData, Sentence
from tests.support.tiny import LABELS, make_tiny_model
from tests.support.tokenizers import make_tokenizer, save_tokenizer


def test_a_note_is_printed_once_and_by_one_process(capsys, monkeypatch):
    note = Notes(Parser(prog="lorakit train"))
    for message in ("one", "two", "one"):
        note(message)
    monkeypatch.setenv("RANK", "1")
    Notes(Parser(prog="lorakit train"))("three")
    assert capsys.readouterr().err == "lorakit train: note: one\nlorakit train: note: two\n"


def test_an_uncased_base_on_a_corpus_with_capitals_is_noted():
    cased, lower = [(["IL-2", "gene"], ["O", "O"])], [(["il-2", "gene"], ["O", "O"])]
    uncased = make_tokenizer("bert-uncased")
    assert case_note(uncased, cased).startswith("the base is uncased and 50% of the training words have capitals")
    assert case_note(uncased, lower) is None
    assert case_note(make_tokenizer("bert"), cased) is None


def test_train_notes_an_uncased_base_and_a_new_head_once_for_both_modes(tmp_path, capsys):
    base = tmp_path / "base"
    model = make_tiny_model()
    assert tuple(model.config.id2label.values()) == tuple(LABELS)
    model.save_pretrained(base)
    save_tokenizer("bert-uncased", base)
    sentences = "".join(f"{word}\t{tag}\n" for word, tag in (("IL-2", "B-x"), ("gene", "I-x"), ("binds", "O"))) + "\n"
    (tmp_path / "corpus").mkdir()
    for name in ("train", "valid", "test"):
        (tmp_path / "corpus" / f"{name}.txt").write_text(sentences * 4)
    command = ["train", "--mode", "both", "--model", str(base), "--dataset", str(tmp_path / "corpus")]
    assert main([*command, "--epochs", "1", "--output-dir", str(tmp_path / "run")]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    assert [note.partition("note: ")[2].split(" (")[0] for note in notes] == [
        f"{base}: the head is new: the checkpoint's own was trained for other labels",
        "the base is uncased and 33% of the training words have capitals, which it does not see; a cased base usually"
        " finds more entities",
    ]


def corpus(**splits):
    """A corpus by its tags: one sentence per split."""
    rows = {
        name: (Sentence(tuple("abcdefgh"[: len(tags.split())]), tuple(tags.split())),) for name, tags in splits.items()
    }
    return NerData(**{"train": (), "validation": (), "test": (), **rows}, labels=("O",), source="c")


def counts_of(data):
    return corpus_counts(data, types_by_split(data))


def test_entities_are_looked_for_once(monkeypatch, capsys):
    seen, spans = [], notes.spans
    monkeypatch.setattr(notes, "spans", lambda tags: seen.append(tags) or spans(tags))
    described, told = corpus(train="B-X O", validation="B-X", test="O B-Y"), []
    describe_corpus(described, "lorakit train", told.append)
    assert len(seen) == 3 and len(told) == 1 and told[0].startswith("Y: in the test split (1 of 1 entity)")
    assert capsys.readouterr().err.startswith("lorakit train: corpus: train 1 sentence, 1 entity; validation 1")


def test_counts_are_those_that_seqeval_makes():
    from seqeval.metrics.sequence_labeling import get_entities

    tags = {"train": "B-X I-X B-X O I-Y", "validation": "O B-Y"}
    line = counts_of(corpus(**tags))
    found = {name: len(get_entities(row.split())) for name, row in tags.items()}
    wanted = [f"{name} 1 sentence, {n} {'entity' if n == 1 else 'entities'}" for name, n in found.items()]
    assert line == "; ".join([*wanted, "by type: X 2, Y 2"])
    many = counts_of(corpus(train=" ".join(f"B-{i}" for i in range(8)), test="B-8 B-9"))
    assert many.endswith("7 1, and 2 more types")


@pytest.mark.parametrize(
    ("tags", "notes"),
    [
        ({"train": "B-X O", "validation": "B-X", "test": "B-X"}, []),
        ({"train": "B-X O"}, []),
        (
            {"train": "B-X O", "validation": "O O", "test": "B-X"},
            ["the validation split has no entity, so its F1 is always 0"],
        ),
        (
            {"train": "B-X O", "test": "B-X B-Z B-Z"},
            [
                "Z: in the test split (2 of 3 entities) but not in the training split, so the model cannot learn to"
                " find them"
            ],
        ),
        (
            {"train": "B-X B-W", "test": "B-X"},
            ["W: only in the training split, so no score says how well they are found"],
        ),
    ],
)
def test_splits_that_differ_are_noted(tags, notes):
    assert split_notes(types_by_split(corpus(**tags))) == notes


def test_train_and_evaluate_tell_what_they_read(tmp_path, capsys):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, tags in {"train": ("I-x", "I-x", "O"), "valid": ("O", "O", "O"), "test": ("I-x", "O", "I-new")}.items():
        rows = "".join(f"{word}\t{tag}\n" for word, tag in zip(("IL-2", "gene", "binds"), tags, strict=True)) + "\n"
        (folder / f"{name}.txt").write_text(rows * 2)
    command = ["train", "--model", "examples/mini", "--dataset", str(folder), "--epochs", "1"]
    assert main([*command, "--output-dir", str(tmp_path / "run")]) == 0
    err = capsys.readouterr().err
    counts = "train 2 sentences, 2 entities; validation 2 sentences, 0 entities; test 2 sentences, 4 entities"
    assert f"lorakit train: corpus: {counts}; by type: x 4, new 2\n" in err
    for words in ("read as iob1: 6 tags converted", "the validation split has no entity", "new: in the test split"):
        assert f"lorakit train: note: {words}" in err
    saved = ["--adapter", str(tmp_path / "run" / "adapter"), "--dataset", str(folder)]
    assert main(["evaluate", *saved]) == 0
    assert "lorakit evaluate: note: read as iob1" in capsys.readouterr().err


def test_training_without_one_entity_is_refused_before_anything_is_written(tmp_path, capsys):
    (tmp_path / "train.txt").write_text("IL-2\tO\ngene\tO\n\n" * 2)
    command = ["train", "--model", "examples/mini", "--dataset", str(tmp_path), "--output-dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="2"):
        main(command)
    (line,) = capsys.readouterr().err.splitlines()
    assert "no entity in 2 training sentences" in line and "see how it is read with lorakit data show" in line
    assert not (tmp_path / "run").exists()
