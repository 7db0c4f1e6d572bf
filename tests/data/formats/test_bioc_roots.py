"""XML that is no BioC is refused before the package `bioc` is asked for."""

import json
import sys
from pathlib import Path

import pytest

from lorakit.data.corpus import read_ner
from tests.support.corpora import write_text


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("<DOC><TEXT>The <ENAMEX TYPE='ORG'>EU</ENAMEX></TEXT></DOC>\n", "its root is <DOC>"),
        ("<?xml version='1.0'?>\n<!-- <collection -->\n<corpus a='1'>x</corpus>\n", "its root is <corpus>"),
        ("EU ran\n", "it has no root"),
    ],
)
def test_other_xml_is_named_and_json_lines_are_the_fix(
    tmp_path: Path, text: str, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bioc", None)  # not installed
    path = write_text(tmp_path / "muc.xml", text)
    with pytest.raises(ValueError, match=f"muc.xml: {root}, and of XML only BioC is read, .*JSON lines: {{") as refused:
        read_ner(path)
    advised = str(refused.value).rpartition("JSON lines: ")[2]
    assert json.loads(advised)
    assert read_ner(write_text(tmp_path / "a.jsonl", advised)).train[0].tags == ("B-ORG", "O")
