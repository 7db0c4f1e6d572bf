"""BioC is read as the package `bioc` has it: passages, sentences, and annotations at each level."""

import json
import sys
from pathlib import Path

import pytest

from lorakit.data.formats.bioc import (
    read_bioc_json,
    read_bioc_xml,
    recognise_bioc_json,
    recognise_bioc_xml,
    write_bioc_json,
    write_bioc_xml,
)
from lorakit.data.formats.record import Annotation, Document, Reading
from tests.support.corpora import write_text

bioc = pytest.importorskip("bioc", reason="BioC needs the package bioc")

XML = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE collection SYSTEM "BioC.dtd">
<collection><source>PubMed</source><date>2026</date><key>x.key</key>
<document><id>1</id>
 <passage><infon key="type">title</infon><offset>0</offset><text>Naïve IL-2 &amp; NF-kB</text>
  <annotation id="T1"><infon key="type">Gene</infon><infon key="identifier">3558</infon>
   <location offset="6" length="4"/><text>IL-2</text></annotation>
  <annotation id="T2"><infon key="type">Pair</infon>
   <location offset="6" length="4"/><location offset="13" length="5"/><text>IL-2 NF-kB</text></annotation>
 </passage>
 <passage><infon key="type">abstract</infon><offset>19</offset>
  <sentence><offset>19</offset><text>It works.</text></sentence>
  <sentence><offset>29</offset><text>So does p65.</text>
   <annotation id="T3"><infon key="type">Gene</infon><location offset="37" length="3"/><text>p65</text></annotation>
  </sentence>
 </passage>
 <relation id="R1"><node refid="T1" role="a"/></relation>
</document></collection>
"""
FOUND = [
    ("T1", "Gene", ((6, 10),)),
    ("T2", "Pair", ((6, 10), (13, 18))),
    ("T3", "Gene", ((37, 40),)),
]


def xml(path: Path, text: str = XML) -> Path:
    return write_text(path / "a.xml", text)


def places(document: Document) -> list[tuple]:
    return [(item.id, item.label, item.fragments or ((item.start, item.end),)) for item in document.spans]


def test_xml_is_read_at_every_level(tmp_path: Path) -> None:
    assert recognise_bioc_xml(xml(tmp_path)) == "its root is <collection>"
    document = next(read_bioc_xml(xml(tmp_path), Reading()))
    assert (document.id, document.text) == ("1", "Naïve IL-2 & NF-kB\nIt works. So does p65.")
    assert places(document) == FOUND
    assert [document.text[start:end] for start, end in document.sentences] == ["It works.", "So does p65."]
    assert [note.kind for note in document.notes] == [
        "relation, not used",
        "infon 'identifier' of annotations, not used",
    ]


def test_json_is_read_alike_with_its_shortened_forms(tmp_path: Path) -> None:
    collection = bioc.biocxml.loads(XML)
    whole = json.loads(bioc.biocjson.dumps(collection))
    document = whole["documents"][0]
    for passage in document["passages"]:
        for part in (passage, *passage["sentences"]):
            for key in ("annotations", "relations", "sentences"):
                if part.get(key) == []:
                    del part[key]
    for value in (whole, [whole], {"PubTator3": [document]}, document):
        path = write_text(tmp_path / "a.json", json.dumps(value))
        assert recognise_bioc_json(path) == "it has documents with passages"
        found = next(read_bioc_json(path, Reading()))
        assert found.text == "Naïve IL-2 & NF-kB\nIt works. So does p65." and places(found) == FOUND


def test_a_passage_may_have_a_text_and_sentences(tmp_path: Path) -> None:
    text = XML.replace("<offset>19</offset>\n", "<offset>19</offset><text>It works. So does p65.</text>\n")
    assert text != XML
    document = next(read_bioc_xml(xml(tmp_path, text), Reading()))
    assert document.text == "Naïve IL-2 & NF-kB\nIt works. So does p65." and places(document) == FOUND
    assert [document.text[start:end] for start, end in document.sentences] == ["It works.", "So does p65."]


def test_offsets_in_bytes_are_found_out(tmp_path: Path) -> None:
    text = XML.replace('offset="6"', 'offset="7"').replace('offset="13"', 'offset="14"').replace(">19<", ">20<")
    text = text.replace(">29<", ">30<").replace('"37"', '"38"')
    document = next(read_bioc_xml(xml(tmp_path, text), Reading()))
    assert places(document) == FOUND
    assert "offsets are bytes of UTF-8 and were converted" in [note.kind for note in document.notes]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'offset="37"',
            'offset="97"',
            "a.xml, document 1, T3: offsets 97-100 are outside of the text of 12 characters",
        ),
        (
            "<text>p65",
            "<text>p50",
            "a.xml, document 1, T3: offsets 37-40 cover 'p65', but beside them the file has 'p50'",
        ),
        (
            '<infon key="type">Gene',
            '<infon key="kind">Gene',
            "document 1, T1: no infon 'type', which is the entity's; its",
        ),
        (
            'offset="37"',
            'offset="x"',
            "a.xml: no BioC: an element or attribute is missing or of another kind: invalid lit",
        ),
        (' id="T3"', "", "a.xml: no BioC: an element or attribute is missing or of another kind: 'id'"),
        ("</collection>", "", r"a.xml:\d+: invalid XML: .*; if it is truncated, get it again"),
        (
            ' SYSTEM "BioC.dtd"',
            ' [<!ENTITY x SYSTEM "file:///etc/hostname">]',
            "a.xml: it declares XML entities, which",
        ),
    ],
)
def test_bad_xml_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in XML
    with pytest.raises(ValueError, match=message):
        list(read_bioc_xml(xml(tmp_path, XML.replace(old, new, 1)), Reading()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"documents": [{"passages": [', "a.json:1: invalid JSON: the file ends inside this value"),
        ('{"documents": [{"passages": [{"text": "a"}]}]}', "a.json:1: no BioC: a key is missing or of another kind"),
        ("[7]", "a.json:1: each value must be a JSON object, got 7"),
    ],
)
def test_bad_json_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(read_bioc_json(write_text(tmp_path / "a.json", text), Reading()))


def test_an_annotation_without_a_place_is_counted(tmp_path: Path) -> None:
    document = next(read_bioc_xml(xml(tmp_path, XML.replace('<location offset="37" length="3"/>', "")), Reading()))
    assert places(document) == FOUND[:2]
    assert "annotation without a place in the text, left out" in [note.kind for note in document.notes]


@pytest.mark.parametrize(("write", "read"), [(write_bioc_xml, read_bioc_xml), (write_bioc_json, read_bioc_json)])
def test_sentences_scores_and_gaps_are_written(tmp_path: Path, write, read) -> None:
    spans = (Annotation("A", 0, 1, "T1", score=0.25), Annotation("B", 0, 5, "T2", ((0, 1), (4, 5))))
    document = Document((), None, "", "a. b.", spans=spans, id="d", sentences=((0, 2), (3, 5)))
    assert write([document], tmp_path / "out") == []
    again = next(read(tmp_path / "out", Reading()))
    assert (again.text, again.spans, again.sentences, again.notes) == ("a. b.", spans, ((0, 2), (3, 5)), ())


def test_xml_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="XML cannot hold a control character of a text: .*; write bioc-json"):
        write_bioc_xml([Document((), None, "", "a\x00b")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bioc", None)
    with pytest.raises(ValueError, match=r"a.xml: BioC needs the package bioc: pip install 'lorakit\[bioc\]'"):
        list(read_bioc_xml(xml(tmp_path), Reading()))
