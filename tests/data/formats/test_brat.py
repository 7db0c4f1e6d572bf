"""brat's standoff files are read by its specification: https://brat.nlplab.org/standoff.html."""

from pathlib import Path

import pytest

from lorakit.data.formats.brat import read_brat, recognise_brat, write_brat
from lorakit.data.formats.record import Annotation, Document, Note, Reading
from tests.support.corpora import write_text

TEXT = "Sony, the maker of PlayStation, was today struck in North and South\nAmerica.\n"
ANN = """T1\tOrganization 0 4\tSony
T2\tMERGE-ORG 42 48\tstruck
T3\tLocation 52 57;68 75\tNorth America
T4\tLocation 62 67;68 75\tSouth America
E1\tMERGE-ORG:T2 Org1:T1
T5\tProduct 19 30\tPlayStation
R1\tOrigin Arg1:T5 Arg2:T1
*\tEquiv T1 T5
A1\tNegation E1
M2\tConfidence E1 L1
N1\tReference T1 Wikipedia:534366\tSony
#1\tAnnotatorNotes T1\tthis annotation is suspect
"""


def folder(path: Path, text: str = TEXT, ann: str = ANN) -> Path:
    path.mkdir(exist_ok=True)
    write_text(path / "doc.txt", text)
    write_text(path / "doc.ann", ann)
    return path


def read(path: Path, **how: str) -> list[Document]:
    return list(read_brat(path, Reading(**how)))


def test_every_line_of_the_specification_is_read_or_noted(tmp_path: Path) -> None:
    document = read(folder(tmp_path / "brat"))[0]
    assert (document.id, document.text) == ("doc", TEXT)
    assert [(s.id, s.label, s.fragments or document.text[s.start : s.end]) for s in document.spans] == [
        ("T1", "Organization", "Sony"),
        ("T2", "MERGE-ORG", "struck"),
        ("T3", "Location", ((52, 57), (68, 75))),
        ("T4", "Location", "South\nAmerica"),  # brat splits an entity at a line end
        ("T5", "Product", "PlayStation"),
    ]
    assert [(note.kind, note.where.rpartition("/")[2]) for note in document.notes] == [
        ("event, not used", "doc.ann:5, E1"),
        ("relation, not used", "doc.ann:7, R1"),
        ("equivalence, not used", "doc.ann:8, *"),
        ("attribute, not used", "doc.ann:9, A1"),
        ("attribute, not used", "doc.ann:10, M2"),
        ("identifier in a database, not used", "doc.ann:11, N1"),
        ("comment, not used", "doc.ann:12, #1"),
    ]


def test_entities_are_those_of_the_package_bioc(tmp_path: Path) -> None:
    brat = pytest.importorskip("bioc.brat", reason="the oracle is the package bioc")
    path = folder(tmp_path / "brat")
    with (path / "doc.txt").open(encoding="utf-8") as text, (path / "doc.ann").open(encoding="utf-8") as ann:
        theirs = brat.load(text, ann)
    found = {entity.id: sorted((spot.begin, spot.end) for spot in entity.locations) for entity in theirs.entities}
    ours = {item.id: list(item.fragments) or [(item.start, item.end)] for item in read(path)[0].spans}
    assert ours == found | {"T4": [(62, 75)]}


def test_a_folder_is_recognised_and_one_file_too(tmp_path: Path) -> None:
    path = folder(tmp_path / "brat")
    assert recognise_brat(path) == "the folder has 1 .ann file" and recognise_brat(path / "doc.ann") is not None
    assert recognise_brat(tmp_path) is None
    assert read(path / "doc.ann") == read(path)


def test_offsets_in_utf16_are_found_out(tmp_path: Path) -> None:
    document = read(folder(tmp_path / "brat", "😀 Sony 😀 IL-2", "T1\tORG 3 7\tSony\nT2\tGENE 11 15\tIL-2\n"))[0]
    assert [document.text[item.start : item.end] for item in document.spans] == ["Sony", "IL-2"]
    assert document.notes[0].kind == "offsets are UTF-16 units and were converted"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_marks_may_or_may_not_count(tmp_path: Path, mark: str) -> None:
    for number, offsets in enumerate(("6 10", "5 9", "7 11")):
        document = read(folder(tmp_path / f"b{number}", f"{mark}One.\r\nIL-2", f"T1\tGENE {offsets}\tIL-2\n"))[0]
        assert document.text[document.spans[0].start :] == "IL-2" and document.text[:3] == "One"


def test_a_text_without_annotations_file_is_left_out_and_noted(tmp_path: Path) -> None:
    path = folder(tmp_path / "brat")
    write_text(path / "new.txt", "Nobody annotated this.")
    empty = next(document for document in read(path) if not document.id)
    assert (empty.text, empty.notes) == ("", (Note("text without an .ann file, left out", str(path / "new.txt")),))


@pytest.mark.parametrize(
    ("ann", "message"),
    [
        (
            "T1\tORG 0 4\tSony\nX1\tORG 0 4\tSony\n",
            "doc.ann:2: 'X1.*' is no annotation of brat; a line begins with T, E",
        ),
        (
            "T1\tORG 0 4\tSony\nT2\tX 0 4\tSony\nT1\tLOC 19 30\tPlayStation\n",
            "doc.ann:3: the id T1 is that of .*doc.ann:1 too, and brat's ids are unique; give one of",
        ),
        ("T1\tMy Org 0 4\tSony\n", "doc.ann:1, T1: the label 'My Org' holds a space, which brat does not allow; write"),
        ("T1\tORG 0\tSony\n", "doc.ann:1, T1: .* is no entity; it is an id, a tab, a label"),
        ("T1 ORG 0 4 Sony\n", "doc.ann:1, T1 ORG 0 4 Sony: .* is no entity"),
        ("T1\tORG 0 400\tSony\n", "doc.ann, T1: offsets 0-400 are outside of the text of 77 characters"),
        ("T1\tORG 0 4\tSoni\n", "doc.ann, T1: offsets 0-4 cover 'Sony', but beside them the file has 'Soni'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, ann: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(folder(tmp_path / "brat", ann=ann))


def test_hidden_files_are_no_documents(tmp_path: Path) -> None:
    path = folder(tmp_path / "brat")
    expected = read(path)
    for name in ("._doc.ann", "._doc.txt"):  # what macOS puts beside the files on other disks
        (path / name).write_bytes(b"\0\5\x16\7\xff")
    assert recognise_brat(path) == "the folder has 1 .ann file" and read(path) == expected


def test_an_annotations_file_without_its_text_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "brat")
    (path / "doc.txt").unlink()
    with pytest.raises(ValueError, match=r"doc.ann: no doc.txt beside it; brat keeps the text of doc.ann there: copy"):
        read(path)


def test_what_is_written_has_one_annotation_per_line_and_scores_as_comments(tmp_path: Path) -> None:
    spans = (Annotation("LOC", 0, 13, "T7", score=0.5), Annotation("LOC", 6, 20, "", ((6, 13), (18, 20))))
    text = "South\nAmerica and US"
    assert write_brat([Document((), None, "doc", text, spans=spans, id="a b")], tmp_path / "out") == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1.ann", "1.txt"]
    assert (tmp_path / "out" / "1.ann").read_text(encoding="utf-8") == (
        "T1\tLOC 0 5;6 13\tSouth America\nT2\tLOC 6 13;18 20\tAmerica US\n#1\tAnnotatorNotes T1\tscore 0.5000\n"
    )
    again = read(tmp_path / "out")[0]
    assert [(i.start, i.end, i.fragments) for i in again.spans] == [(i.start, i.end, i.fragments) for i in spans]


def test_a_label_with_a_space_cannot_be_written(tmp_path: Path) -> None:
    document = Document((), None, "in.jsonl:3", "a", spans=(Annotation("my label", 0, 1),))
    with pytest.raises(
        ValueError, match="in.jsonl:3: the label 'my label' holds white space, .* rename it to 'my_label'"
    ):
        write_brat([document], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_two_files_of_a_bionlp_shared_task_are_read_as_one(tmp_path: Path) -> None:
    """https://2013.bionlp-st.org/file-formats"""
    path = folder(tmp_path / "st", "IL-2 is phosphorylated", "")
    (path / "doc.ann").unlink()
    write_text(path / "doc.a1", "T1\tProtein 0 4\tIL-2\n")
    write_text(path / "doc.a2", "T2\tPhosphorylation 8 22\tphosphorylated\nE1\tPhosphorylation:T2 Theme:T1\n")
    assert recognise_brat(path) == "the folder has 1 .a1 file"
    document = read(path)[0]
    assert [(item.label, item.id) for item in document.spans] == [("Protein", "T1"), ("Phosphorylation", "T2")]
    assert [note.kind for note in document.notes] == ["event, not used"] and document.id == "doc"


def test_annotations_in_folders_inside_are_noted(tmp_path: Path) -> None:
    path = folder(tmp_path / "brat")
    folder(path / "more")
    assert [note.kind for note in read(path)[0].notes] == [
        "folder inside with annotations, not read; give it as a corpus of its own"
    ]


def test_a_name_may_hold_full_stops(tmp_path: Path) -> None:
    path = tmp_path / "brat"
    path.mkdir()
    write_text(path / "doc.v1.txt", "EU wins")
    write_text(path / "doc.v1.ann", "T1\tORG 0 2\tEU\n")
    assert [document.id for document in read(path)] == ["doc.v1"] == [d.id for d in read(path / "doc.v1.ann")]
