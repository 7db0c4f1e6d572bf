"""WebAnno TSV 3 is read by its specification (webannotsv.adoc of INCEpTION), whose examples most of these files are."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from lorakit.data.corpus import read_ner
from lorakit.data.formats.record import Annotation, Document, Reading
from lorakit.data.formats.webanno import NO_VALUE, read_webanno, recognise_webanno, write_webanno
from tests.support.annotated import Text, texts
from tests.support.corpora import write_text

POS = "#T_SP=de.tudarmstadt.ukp.dkpro.core.api.lexmorph.type.pos.POS|PosValue\n"
NER = "#T_SP=de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity|value\n"
HEAD = "#FORMAT=WebAnno TSV 3.3\n"
STACKED = f"""{HEAD}{POS}{NER}

#Sentence.id=s1
#Text=Ms. Haag plays .
1-1\t0-3\tMs.\tNNP\tPER[1]|PERpart[2]\t
1-2\t4-8\tHaag\tNNP\tPER[1]\t
1-3\t9-14\tplays\tVBD\t_\t
1-3.1\t9-13\tplay\t_\tOTH\t
1-4\t15-16\t.\t.\t_\t

#Text=He left .
2-1\t17-19\tHe\tPRP\tPER\t
2-2\t20-24\tleft\tVBD\t*\t
2-3\t25-26\t.\t.\t_\t
"""


def read(folder: Path, text: str, **how: object) -> Document:
    path = write_text(folder / "doc.tsv", text)
    assert recognise_webanno(path) == "its first line is #FORMAT=WebAnno TSV 3.3"
    [document] = read_webanno(path, Reading(**how))
    return document


def found(document: Document) -> list[tuple[str, str]]:
    return [(item.label, document.text[item.start : item.end]) for item in document.spans]


def test_tokens_sentences_and_stacked_annotations(tmp_path: Path) -> None:
    document = read(tmp_path, STACKED)
    assert document.text == "Ms. Haag plays .\nHe left ." and document.id == "doc"
    assert document.words == ("Ms.", "Haag", "plays", ".", "He", "left", ".")
    assert [document.text[start:end] for start, end in document.sentences] == ["Ms. Haag plays .", "He left ."]
    assert found(document) == [("PER", "Ms. Haag"), ("PERpart", "Ms."), ("OTH", "play"), ("PER", "He")]
    assert [(note.kind, note.where.rpartition(":")[2]) for note in document.notes[:1]] == [(NO_VALUE, "16")]
    assert [note.kind for note in document.notes[1:]] == ["layer POS, not used"]


def test_the_sentences_are_tagged(tmp_path: Path) -> None:
    data = read_ner(write_text(tmp_path / "doc.tsv", STACKED))
    assert [" ".join(f"{w}/{t}" for w, t in zip(s.words, s.tags, strict=True)) for s in data.train] == [
        "Ms./B-PER Haag/I-PER play/B-OTH s/O ./O",
        "He/B-PER left/O ./O",
    ]
    assert any(note.startswith("inside another annotation, left out") for note in data.notes)


def test_offsets_count_utf16_units(tmp_path: Path) -> None:
    rows = "1-1\t0-1\tI\t_\t\n1-2\t2-6\tlike\t_\t\n1-3\t7-9\tit\t_\t\n1-4\t10-12\t😊\tEMO\t\n1-5\t13-14\t.\t_\t\n"
    document = read(tmp_path, f"{HEAD}{NER}\n\n#Text=I like it 😊 .\n{rows}")
    assert found(document) == [("EMO", "😊")] and document.words[-2:] == ("😊", ".")


def test_escaped_characters_and_lines_of_text(tmp_path: Path) -> None:
    """The value is that of INCEpTION's testTokenBoundedSpanWithSpecialSymbolsValue, without its tab and line end."""
    value = "#\\*'\"`´:\\;{}\\|\\[ \\]()\\\\§$%?=&\\_"
    rows = f"1-1\t0-3\ta\\\\b\t{value}[1]\t\n1-2\t4-5\tc\t{value}[1]|X\\->Y[2]\t\n"
    document = read(tmp_path, f"{HEAD}{NER}\n\n#Text=a\\\\b\n#Text=c\n{rows}")
    assert found(document) == [("#*'\"`´:;{}|[ ]()\\§$%?=&_", "a\\b\nc"), ("X->Y", "c")]
    assert document.words == ("a\\b", "c")


def test_a_layer_without_features_is_called_by_its_name(tmp_path: Path) -> None:
    text = f"{HEAD}#T_SP=webanno.custom.SimpleSpan|\n\n\n#Text=This is\n1-1\t0-4\tThis\t*[1]\t\n"
    text += "1-2\t5-7\tis\t*[1]|*[2]\t\n"
    assert found(read(tmp_path, text)) == [("SimpleSpan", "This is"), ("SimpleSpan", "is")]
    text = f"{text}1-2.1\t7-7\t\t*[3]\t\n"
    assert found(read(tmp_path, text))[2:] == [("SimpleSpan", "")]
    assert any(note.startswith("covers no word, left out") for note in read_ner(tmp_path / "doc.tsv").notes)


def test_other_features_of_the_layer_are_noted(tmp_path: Path) -> None:
    layers = NER.replace("|value", "|identifier|value")
    rows = "#Text=EU ran\n1-1\t0-2\tEU\t{}\tORG[1]|X[2]\t\n1-2\t3-6\tran\t_\t_\t\n"
    document = read(tmp_path, f"{HEAD}{layers}\n\n{rows.format('Q458[1]|*[2]')}")
    assert [note.kind for note in document.notes] == ["feature NamedEntity.identifier, not used"]
    assert read(tmp_path, f"{HEAD}{layers}\n\n{rows.format('*[1]|*[2]')}").notes == ()


def test_an_annotation_without_a_value_is_counted_once(tmp_path: Path) -> None:
    text = f"{HEAD}{NER}\n\n#Text=a b\n1-1\t0-1\ta\t*[1]\t\n1-2\t2-3\tb\t*[1]|X[2]\t\n"
    document = read(tmp_path, text)
    assert found(document) == [("X", "b")] and [note.kind for note in document.notes] == [NO_VALUE]


SLOT = "ROLE_webanno.custom.Frame:Roles_webanno.custom.FrameRolesLink|webanno.custom.Lu"
TWO = f"""{HEAD}#T_SP=webanno.custom.Frame|FE|{SLOT}
#T_SP=webanno.custom.Lu|luvalue
#T_RL=webanno.custom.R|value|BT_webanno.custom.Lu


#Text=Bob sold
1-1\t0-3\tBob\t_\t_\t_\tbob\t_\t_\t
1-2\t4-8\tsold\ttransaction\tseller\t1-1\t_\t*\t1-1\t
"""


@pytest.mark.parametrize("name", ["4", "FE", "Frame.FE"])
def test_of_several_layers_one_must_be_named(tmp_path: Path, name: str) -> None:
    message = (
        "which column holds the types .* There are 4 .Frame.FE., 7 .Lu.luvalue.; name it, such as columns={'tag': 4}"
    )
    with pytest.raises(ValueError, match=message):
        read(tmp_path, TWO)
    document = read(tmp_path, TWO, columns={"tag": name})
    assert found(document) == [("transaction", "sold")]
    assert [note.kind for note in document.notes] == [
        "layer Lu, not used",
        "layer R, not used",
        "feature with roles, not used",
    ]
    assert found(read(tmp_path, TWO, columns={"tag": "luvalue"})) == [("bob", "Bob")]


@pytest.mark.parametrize("columns", [{"tag": "5"}, {"tag": "9"}, {"word": "3", "tag": "4"}, {"word": "3"}])
def test_other_columns_are_refused(tmp_path: Path, columns: dict) -> None:
    with pytest.raises(
        ValueError, match="has its words in column 3; name the one column of types, such as columns={'tag': 4}, of 4"
    ):
        read(tmp_path, TWO, columns=columns)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1-1\t0-2\tBobby\tPER\t\n", "token 1-1: offsets 0-2 cover 'Bo', but beside them the file has 'Bobby'"),
        ("1-1\t0-90\tBob\tPER\t\n", "token 1-1: offsets 0-90 are outside of the text"),
        ("1-1\t0-3\tBob\n", "doc.tsv:6: '1-1.*' is no row of WebAnno TSV 3 with 1 columns of features"),
        ("Bob\tB-PER\n", "doc.tsv:6: 'Bob.*' is no row of WebAnno TSV 3"),
        ("1-1\t0-3\tBob\tPER[x]\t\n", r"doc.tsv:6: 'PER\[x\]' is no value such as PER"),
        ("1-1\t0-3\tBob\t|PER\t\n", "doc.tsv:6: '.PER' is no value such as PER"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, f"{HEAD}{NER}\n\n#Text=Bob left\n{row}")


def test_sentences_that_overlap_are_refused(tmp_path: Path) -> None:
    text = f"{HEAD}{NER}\n\n#Text=Bob\n1-1\t0-3\tBob\t_\t\n\n#Text=left\n2-1\t2-6\tleft\t_\t\n"
    with pytest.raises(ValueError, match="the sentence at offset 2 begins before the last one ends, at 3"):
        read(tmp_path, text)


def test_a_folder_of_documents_is_one_corpus(tmp_path: Path) -> None:
    for name in "abc":
        write_text(tmp_path / f"{name}.tsv", STACKED)
    (tmp_path / "._a.tsv").write_bytes(b"\0\5\x16\7")  # what macOS puts beside a.tsv on other disks
    data = read_ner(tmp_path, shares="34/33/33")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [2, 2, 2]
    assert data.notes[-1].endswith("sentences of 3 documents, none of them divided")
    (tmp_path / "a.tsv").rename(tmp_path / "train.tsv")
    assert recognise_webanno(tmp_path) is None and len(read_ner(tmp_path).train) == 2


# Writing --------------------------------------------------------------------------------------------------------------


def test_what_is_written_has_the_form_of_the_specification(tmp_path: Path) -> None:
    text = "Dr. Haag plays_x . 😀 He left ."
    spans = (
        Annotation("PER", 0, 8),
        Annotation("PERpart", 0, 3),
        Annotation("my|type", 9, 14),
        Annotation("X", 19, 20),
    )
    document = Document((), None, "", text, spans=spans, id="doc")
    assert write_webanno([document, document._replace(spans=())], tmp_path / "out") == []
    assert (tmp_path / "out" / "doc-1.tsv").read_text(encoding="utf-8") == (
        f"{HEAD}{NER}\n\n#Text=Dr. Haag plays\\_x .\n"
        "1-1\t0-3\tDr.\tPER[1]|PERpart[2]\t\n1-2\t4-8\tHaag\tPER[1]\t\n"
        "1-3\t9-16\tplays\\_x\t_\t\n1-3.1\t9-14\tplays\tmy\\|type[3]\t\n1-4\t17-18\t.\t_\t\n"
        "\n#Text=😀 He left .\n2-1\t19-21\t😀\tX[4]\t\n2-2\t22-24\tHe\t_\t\n2-3\t25-29\tleft\t_\t\n"
        "2-4\t30-31\t.\t_\t\n"
    )
    read_again = list(read_webanno(tmp_path / "out", Reading()))
    assert found(read_again[0]) == [(item.label, text[item.start : item.end]) for item in spans]
    assert [document.id for document in read_again] == ["doc-1", "doc-2"]


def test_an_annotation_is_in_one_sentence(tmp_path: Path) -> None:
    document = Document((), None, "", "Ms. Haag ran. She won.", spans=(Annotation("PER", 0, 8),))
    write_webanno([document], tmp_path / "out")
    [again] = read_webanno(tmp_path / "out", Reading())
    assert [again.text[start:end] for start, end in again.sentences] == ["Ms. Haag ran.", "She won."]


def letters_before(text: str, place: int) -> int:
    return len("".join(text[:place].split()))


def by_letters(document: Document) -> list[tuple[str, int, int]]:
    text = document.text or ""
    places = ((item.label, letters_before(text, item.start), letters_before(text, item.end)) for item in document.spans)
    return sorted(place for place in places if place[1] < place[2])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(texts(extra=("\r\n", "\t", "|", "_", "*", "[", "\\", "->"), gaps=False))
def test_whatever_is_written_is_read_again_or_counted(tmp_path_factory: pytest.TempPathFactory, made: Text) -> None:
    spans = tuple(Annotation(m.label, *m.pieces[0]) for m in made.marked)
    document = Document((), None, "doc", made.text, spans=spans)
    folder = tmp_path_factory.mktemp("any") / "out"
    said = write_webanno([document], folder)
    assert recognise_webanno(folder)
    [again] = read_webanno(folder, Reading())
    assert "".join((again.text or "").split()) == "".join(made.text.split())
    assert by_letters(again) == by_letters(document)
    lost = len(spans) - len(by_letters(document))
    assert said == ([f"annotations that cover no word, left out: {lost}"] if lost else [])


def test_a_document_named_as_a_split_does_not_make_the_folder_one_of_splits(tmp_path: Path) -> None:
    documents = [Document((), None, "", "EU ran", spans=(Annotation("ORG", 0, 2),), id=name) for name in ("train", "x")]
    write_webanno(documents, tmp_path / "out")
    assert len(read_ner(tmp_path / "out").train) == 2


def test_gaps_are_said(tmp_path: Path) -> None:
    gap = Annotation("X", 0, 5, fragments=((0, 1), (4, 5)))
    said = write_webanno([Document((), None, "", "a b c", spans=(gap,))], tmp_path / "out")
    assert said == ["annotations with gaps, written from their first to their last word: 1"]
