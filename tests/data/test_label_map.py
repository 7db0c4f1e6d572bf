"""A table of types is read to the letter, or refused with its place."""

from pathlib import Path

import pytest

from lorakit.data.label_map import read_label_map


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.tsv", "DNA\tGENE\nDNA\tRNA\n", "t.tsv:2: 'DNA' is there twice, with different new names; keep one"),
        ("t.tsv", "DNA\tGENE\nDNA\t\n", "t.tsv:2: 'DNA' is there twice"),
        ("t.tsv", "DNA\n", "t.tsv:1: broken line 'DNA'"),
        ("t.json", '{"DNA": "GENE", "DNA": null}', "t.json: the key 'DNA' is twice in one object"),
        ("t.json", '{"DNA": \n', "t.json:2: invalid JSON"),
        ("t.json", '["DNA"]', "t.json: must map each old type to a new name or null"),
        ("t.json", '{"DNA": "A B"}', "'DNA' becomes 'A B'; a type has no space in its name"),
        ("t.json", None, "t.json: cannot be read: No such file"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, name: str, text: str | None, message: str):
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        read_label_map(tmp_path / name)
    assert str(error.value).count(name) == 1


def test_a_line_twice_is_no_contradiction(tmp_path: Path):
    (tmp_path / "t.tsv").write_text("DNA\tGENE\ncell_line\t\nDNA\tGENE\ncell_line\t\n", encoding="utf-8")
    assert read_label_map(tmp_path / "t.tsv") == {"DNA": "GENE", "cell_line": None}
