"""The spaCy pipeline, loaded by spaCy."""

import subprocess
import sys

import pytest

import lorakit
from lorakit.cli.__main__ import main
from lorakit.training.models import load_tagger

spacy = pytest.importorskip("spacy", reason="spacy is not installed (extra spacy)")

TEXTS = ["The IL-2 gene (IL2)  binds NF-kappa B.", "", "  p50/p65,\n\tGATA-1 ", "0.5% of T-cells\u00a0[12]"]


@pytest.fixture(scope="module")
def out(adapter, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spacy") / "out"
    assert main(["export", str(adapter), str(folder), "--to", "spacy", "--dataset", str(corpus)]) == 0
    return folder


def test_spacy_finds_what_lorakit_finds_in_raw_text(out, adapter):
    wanted = lorakit.predict(*load_tagger(str(adapter)), TEXTS)
    assert sum(map(len, wanted)) > 5
    docs = list(spacy.load(out).pipe(TEXTS))
    assert [doc.text for doc in docs] == TEXTS
    found = [[(e.label_, e.start_char, e.end_char, e.text) for e in doc.ents] for doc in docs]
    assert found == [[(e.type, e.start, e.end, e.text) for e in row] for row in wanted]


def test_it_decodes_as_the_model_was_trained(valid, corpus, words, tmp_path, capsys):
    command = ["export", str(valid), str(tmp_path / "out"), "--to", "spacy", "--dataset", str(corpus)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "(viterbi, fp32) of 4 sentences of the validation set through spaCy." in told and "Note that" not in told
    texts = [" ".join(row) for row in words]
    wanted, greedy = (lorakit.predict(*load_tagger(model=str(valid)), texts, decode=d) for d in ("auto", "greedy"))
    assert wanted != greedy
    found = [[(e.label_, e.start_char, e.end_char) for e in d.ents] for d in spacy.load(tmp_path / "out").pipe(texts)]
    assert found == [[(e.type, e.start, e.end) for e in row] for row in wanted]
    assert 'decode = "viterbi"' in (tmp_path / "out" / "config.cfg").read_text()


def test_a_program_that_imports_only_spacy_can_load_it(out):
    from importlib.metadata import entry_points

    if not any(entry.name == "lorakit_ner" for entry in entry_points(group="spacy_factories")):
        pytest.skip("lorakit was installed before it had this entry point: pip install -e .")
    code = f"import spacy; print(len(spacy.load({str(out)!r})('The IL-2 gene (IL2).')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "7\n", done.stderr


def test_another_tokenizers_documents_keep_whole_tokens(out):
    nlp = spacy.blank("en")
    nlp.add_pipe("lorakit_ner", source=spacy.load(out))
    doc = nlp(TEXTS[0])
    assert doc.ents and all(doc[e.start : e.end].text == e.text for e in doc.ents)


def test_written_again_by_spacy_to_a_folder_or_as_bytes_it_finds_the_same_and_shows_nothing(out, tmp_path, capfd):
    nlp = spacy.load(out)
    nlp.to_disk(tmp_path / "again")
    from_bytes = type(nlp).from_config(nlp.config)
    from_bytes.from_bytes(nlp.to_bytes())
    wanted = [[(e.label_, e.start, e.end) for e in doc.ents] for doc in nlp.pipe(TEXTS)]
    assert any(wanted)
    for loaded in (spacy.load(tmp_path / "again"), from_bytes):
        assert [[(e.label_, e.start, e.end) for e in doc.ents] for doc in loaded.pipe(TEXTS)] == wanted
    assert capfd.readouterr() == ("", "")
