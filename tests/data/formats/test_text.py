from pathlib import Path

import pytest

from lorakit.data.corpus import read_ner
from lorakit.data.formats.text import read_lines


def test_lines_have_their_place_and_no_ends(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes("\ufeffa\r\n\u2028b\x85\n".encode())
    assert list(read_lines(path)) == [(f"{path}:1", "a"), (f"{path}:2", "\u2028b\x85"), (f"{path}:3", "")]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing.txt: cannot be read: No such file or directory"):
        list(read_lines(tmp_path / "nothing.txt"))


def test_a_file_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes(b"\xef\xbb\xbfa\tO\nb\tO\n\xfc\tO\n")
    with pytest.raises(ValueError, match=r"train.tsv:3: not UTF-8 \(invalid start byte\); convert the file to UTF-8"):
        read_ner(tmp_path)
