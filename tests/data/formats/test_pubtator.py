"""PubTator files are read by their specification, and as the package bioc reads them."""

from pathlib import Path

import pytest

from lorakit.data.formats.pubtator import read_pubtator, recognise_pubtator, write_pubtator
from lorakit.data.formats.record import Annotation, Document, Reading
from tests.support.corpora import write_text

FILE = """354896|t|Lidocaine-induced cardiac asystole.
354896|a|Intravenous administration of a single 50-mg bolus of lidocaine in a 67-year-old man resulted in profound.
354896\t0\t9\tLidocaine\tChemical\tD008012
354896\t18\t34\tcardiac asystole\tDisease\tD006323
354896\t90\t99\tlidocaine\tChemical\tD008012
354896\tCID\tD008012\tD006323

2|t|No abstract, naïve 😀 NF-kB
2|a|
2\t21\t26\tNF-kB\tGene\t
"""


def read(path: Path, text: str, **how: str) -> list[Document]:
    return list(read_pubtator(write_text(path / "in.txt", text), Reading(**how)))


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_abstracts_are_read_with_their_entities(tmp_path: Path, line_end: str) -> None:
    first, second = read(tmp_path, FILE.replace("\n", line_end))
    assert (first.id, second.id) == ("354896", "2")
    assert first.text.startswith("Lidocaine-induced cardiac asystole.\nIntravenous")
    assert [(item.label, first.text[item.start : item.end]) for item in first.spans] == [
        ("Chemical", "Lidocaine"),
        ("Disease", "cardiac asystole"),
        ("Chemical", "lidocaine"),
    ]
    assert [(note.kind, note.where.rpartition(":")[2]) for note in first.notes] == [
        ("identifier in a database, not used", "3, D008012"),
        ("identifier in a database, not used", "4, D006323"),
        ("identifier in a database, not used", "5, D008012"),
        ("relation, not used", "6"),
    ]
    assert [(item.label, second.text[item.start : item.end]) for item in second.spans] == [("Gene", "NF-kB")]
    assert not second.notes


def test_the_package_bioc_reads_the_same(tmp_path: Path) -> None:
    pubtator = pytest.importorskip("bioc.pubtator", reason="the oracle is the package bioc")
    theirs, ours = pubtator.loads(FILE)[0], read(tmp_path, FILE)[0]
    assert (theirs.pmid, theirs.text) == (ours.id, ours.text)
    assert [(a.start, a.end, a.type) for a in theirs.annotations] == [(s.start, s.end, s.label) for s in ours.spans]


def test_documents_need_no_blank_line_between_them(tmp_path: Path) -> None:
    assert [d.id for d in read(tmp_path, FILE.replace("\n\n", "\n"))] == ["354896", "2"]


def test_a_line_of_no_known_kind_is_counted(tmp_path: Path) -> None:
    """As in tmVar's corpus: 21615796<tab>Translation 7488T/C<tab>His-to-Arg substitution at amino acid 161"""
    document = read(tmp_path, "1|t|A title\n1|a|\n1\tTranslation 7488T/C\tHis-to-Arg substitution\n")[0]
    assert [note.kind for note in document.notes] == ["line that is neither annotation nor relation, not used"]


def test_the_first_line_is_recognised(tmp_path: Path) -> None:
    assert recognise_pubtator(write_text(tmp_path / "a.txt", FILE)) == "its first line is ID|t|TITLE"
    assert recognise_pubtator(write_text(tmp_path / "a.txt", "EU\tB-ORG\n")) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t0\t9\tLidocaine\tChemical\tD1", "in.txt:3: the line is of document '1', but stands in document '354896'"),
        (
            "354896\t0\t9\tLidocaine",
            "in.txt:3: an annotation without a type; its fields are ID, start, end, text, type",
        ),
        ("354896\tx", "in.txt:3: .* is no annotation; it has six fields, with a tab between them"),
        ("354896\t0\t9\tlidocain\tChemical\tD1", "in.txt:1, line 3: offsets 0-9 cover 'Lidocaine', but beside them"),
        ("354896\t200\t209\tLidocaine\tChemical\tD1", "in.txt:1, line 3: offsets 200-209 are outside of the text"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "\n".join([*FILE.split("\n")[:2], line]))


def test_a_file_that_does_not_begin_with_a_title_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"in.txt:1: .* must be ID\|t\|TITLE; a document begins with it"):
        read(tmp_path, "354896\t0\t9\tLidocaine\tChemical\tD1\n")


def test_what_the_format_cannot_hold_is_said(tmp_path: Path) -> None:
    gap = Annotation("X", 0, 5, fragments=((0, 1), (4, 5)))
    documents = [
        Document((), None, "doc", "a\nb\nc\nd", spans=(gap,)),
        Document((), None, "doc", "one line\n", id="x y"),
    ]
    assert write_pubtator(documents, tmp_path / "out.txt") == [
        "1 texts with several line ends: all but the first are written as spaces",
        "1 texts end in line ends, which are not written",
        "annotations with gaps, written from their first to their last character: 1",
    ]
    assert (tmp_path / "out.txt").read_text() == ("1|t|a\n1|a|b c d\n1\t0\t5\ta b c\tX\t-\n\n2|t|one line\n2|a|\n\n")
