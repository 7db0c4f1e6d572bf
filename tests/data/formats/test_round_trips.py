"""Every format of annotated texts: what its own tool writes is read exactly, and what we write is read as it was."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.data.alignment import LEFT_OUT, tag_sentences
from lorakit.data.formats.record import Annotation, Document
from lorakit.data.formats.registry import format_named
from lorakit.data.tags import spans
from tests.support.annotated import TOOLS, Text, content, read, said, texts


@pytest.mark.parametrize("name", TOOLS)
def test_the_files_of_a_tool_are_read_exactly_and_written_again(name: str, tmp_path_factory: pytest.TempPathFactory):
    if name.startswith("bioc"):
        pytest.importorskip("bioc", reason="BioC needs the package bioc")
    write, file, strategy = TOOLS[name]

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(strategy, min_size=1, max_size=3))
    def check(documents: list[Text]) -> None:
        folder = tmp_path_factory.mktemp("fuzz")
        format = format_named(name.split(",")[0])
        source = write(folder / file, documents)
        assert format.recognise(source)
        found = read(name, source)
        assert content(found) == said(name, documents)
        assert format.write(found, folder / f"again-{file}") == []
        again = read(name, folder / f"again-{file}")
        assert content(again) == content(found)
        assert [d.id for d in again if d.id] == [d.id for d in found if d.id]

    check()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(texts(extra=("\r\n", "\t")), st.sampled_from([None, "outer", "inner"]))
def test_every_annotation_is_kept_at_its_place_or_named(document: Text, layer: str | None) -> None:
    found = tuple(
        Annotation(m.label, m.pieces[0][0], m.pieces[-1][1], f"T{i}", m.pieces if len(m.pieces) > 1 else ())
        for i, m in enumerate(document.marked)
    )
    aligned = tag_sentences(Document((), None, "doc", document.text, spans=found), layer)
    left_out = [note.where for note in aligned.notes if note.kind in LEFT_OUT]
    assert len(set(left_out)) == len(left_out) and aligned.kept + len(left_out) == len(found)
    kept = [item for item in found if f"doc, {item.id}" not in left_out]
    for item in kept:
        gaps = [document.text[a:b] for (_, a), (b, _) in zip(item.fragments, item.fragments[1:], strict=False)]
        assert not "".join(gaps).strip()
    tagged, words = [], ""
    for row in aligned.sentences:
        for (start, end), word in zip(row.offsets, row.words, strict=True):
            assert row.text[start:end] == word and word.strip()
        words += "".join(row.words)
        tagged += [
            (span.type, row.text[row.offsets[span.start][0] : row.offsets[span.end - 1][1]]) for span in spans(row.tags)
        ]
    assert words == "".join(document.text.split())
    assert tagged == [(i.label, document.text[i.start : i.end].strip()) for i in sorted(kept, key=lambda i: i.start)]
