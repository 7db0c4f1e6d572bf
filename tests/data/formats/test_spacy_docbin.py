"""spaCy's DocBin is read as spaCy has it, without unpacking anybody's user data."""

import pickle
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.data.formats.record import Annotation, Document, Reading
from lorakit.data.formats.spacy_docbin import read_docbin, recognise_docbin, write_docbin
from tests.support.annotated import Text, texts
from tests.support.corpora import write_text

spacy = pytest.importorskip("spacy", reason="a .spacy file needs spaCy")


def saved(path: Path, *docs: object, **how: bool) -> Path:
    spacy.tokens.DocBin(docs=docs, **how).to_disk(path)
    return path


def apple(text: str = "Apple is looking at  buying U.K. startups.\nYes."):
    doc = spacy.blank("en")(text)
    doc.set_ents([doc.char_span(0, 5, label="ORG"), doc.char_span(28, 32, label="GPE")], default="outside")
    return doc


def test_entities_tokens_and_text_are_those_of_spacy(tmp_path: Path) -> None:
    doc = apple()
    path = saved(tmp_path / "a.spacy", doc)
    assert recognise_docbin(path) == "its ending is .spacy, and it is compressed"
    document = next(read_docbin(path, Reading()))
    assert document.text == doc.text and document.sentences == () and document.notes == ()
    assert [(i.label, i.start, i.end) for i in document.spans] == [
        (e.label_, e.start_char, e.end_char) for e in doc.ents
    ]
    assert document.words == tuple(token.text for token in doc if not token.is_space)
    assert [document.text[a:b] for a, b in document.offsets] == list(document.words)


def test_marked_sentences_are_read(tmp_path: Path) -> None:
    doc = apple()
    for token in doc:
        token.is_sent_start = token.text in ("Apple", "Yes")
    document = next(read_docbin(saved(tmp_path / "a.spacy", doc), Reading()))
    assert [document.text[a:b] for a, b in document.sentences] == [s.text for s in doc.sents]


def test_span_groups_are_read_where_no_entities_are_and_counted_where_they_are(tmp_path: Path) -> None:
    spans = spacy.blank("en")("IL-2 gene works")
    spans.spans["sc"] = [spans.char_span(0, 9, label="A"), spans.char_span(5, 9, label="B")]
    both = apple()
    both.spans["other"] = [both[0:1]]
    first, second = read_docbin(saved(tmp_path / "a.spacy", spans, both), Reading())
    assert first.spans == (Annotation("A", 0, 9), Annotation("B", 5, 9)) and not first.notes
    assert [note.kind for note in second.notes] == ["span of doc.spans['other'], not used"]


def test_tokens_that_nobody_annotated_are_counted(tmp_path: Path) -> None:
    doc = spacy.blank("en")("Apple is big")
    doc.set_ents([spacy.tokens.Span(doc, 0, 1, "ORG")], missing=[doc[1:3]], default="outside")
    document = next(read_docbin(saved(tmp_path / "a.spacy", doc), Reading()))
    assert [note.kind for note in document.notes] == ["token that nobody annotated, read as O"] * 2


def test_user_data_is_never_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import srsly

    doc = apple()
    doc.user_data["key"] = b"\x80\x04would be a pickle"
    path = saved(tmp_path / "a.spacy", doc, store_user_data=True)
    unpacked, load = [], srsly.msgpack_loads
    monkeypatch.setattr(srsly, "msgpack_loads", lambda data, **how: unpacked.append(data) or load(data, **how))
    monkeypatch.setattr(pickle, "loads", lambda *a, **k: pytest.fail("something was unpickled"))
    document = next(read_docbin(path, Reading()))
    assert [note.kind for note in document.notes] == ["user_data, not used"]
    assert len(unpacked) >= 1 and not any(b"would be a pickle" in data[:60] for data in unpacked)


def garbage(data: bytes) -> bytes:
    return zlib.compress(b"\x81\xa5attrs\xc1")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b"EU\tB-ORG\n", lambda data: b"x\x9c", garbage]
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage) -> None:
    path = saved(tmp_path / "a.spacy", apple())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="a.spacy: no DocBin of spaCy, or a truncated one: "):
        list(read_docbin(path, Reading()))


def test_an_entity_without_a_label_is_refused(tmp_path: Path) -> None:
    doc = spacy.blank("en")("Apple is big")
    doc.spans["sc"] = [doc[0:1]]
    with pytest.raises(ValueError, match="a.spacy, document 1: the entity at characters 0-5 has no label"):
        list(read_docbin(saved(tmp_path / "a.spacy", doc), Reading()))


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(texts(extra=("\r\n", "\t"), gaps=False, empty=False), min_size=1, max_size=3))
def test_what_is_written_spacy_reads_exactly(tmp_path_factory: pytest.TempPathFactory, documents: list[Text]) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.spacy"
    records = [
        Document((), None, "", d.text, spans=tuple(Annotation(m.label, *m.pieces[0]) for m in d.marked))
        for d in documents
    ]
    said = write_docbin(records, path)
    docs = list(spacy.tokens.DocBin().from_disk(path).get_docs(spacy.vocab.Vocab()))
    for record, doc in zip(records, docs, strict=True):
        found = doc.spans.get("sc", ()) if said else doc.ents
        assert doc.text == record.text
        assert sorted((s.label_, s.start_char, s.end_char) for s in found) == sorted(s[:3] for s in record.spans)
    again = [(d.text, sorted(item[:3] for item in d.spans)) for d in read_docbin(path, Reading())]
    assert again == [(d.text, sorted(item[:3] for item in d.spans)) for d in records]


def test_what_the_format_cannot_hold_is_said(tmp_path: Path) -> None:
    spans = (Annotation("A", 0, 3, fragments=((0, 1), (2, 3))), Annotation("B", 0, 1), Annotation("C", 2, 2))
    assert write_docbin([Document((), None, "", "a b", spans=spans)], tmp_path / "a.spacy") == [
        "annotations overlap: written to doc.spans['sc'], for spaCy's span categorizer, not to doc.ents",
        "annotations with gaps, written from their first to their last character: 1",
        "1 annotations that cover no character: left out, spaCy has none",
    ]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ValueError, match=r"a.spacy: a .spacy file needs spaCy: pip install 'lorakit\[spacy\]'"):
        list(read_docbin(write_text(tmp_path / "a.spacy", "x"), Reading()))
