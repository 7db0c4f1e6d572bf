import io
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner
from lorakit.data.formats.text import MOST_CHARACTERS, decode, decoded_lines, read_lines


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train.tsv: empty: it holds no sentence"),
        (b"a\tO\nb\tO\0\n", r"train.tsv:2: a NUL byte, so it is not UTF-8 text; convert the file to UTF-8"),
        ("IL-2\tB-DNA\n".encode("utf-16-le"), r"train.tsv:1: a NUL byte"),
        (b"a\tO\n\n" + b"b" * (MOST_CHARACTERS + 1), r"train.tsv:3: a line of 16,777,217 characters, and at most"),
    ],
)
def test_what_is_no_text_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_ner(tmp_path)


@given(st.binary(max_size=40) | st.text("ab\r\n\ufeff\u2028é", max_size=20).map(str.encode))
@example(b"a\n\xc3\nb")  # a character that the line's end cuts short
@example("\ufeffa\r\n\r\n".encode())
def test_lines_read_one_by_one_are_those_of_the_whole(data: bytes) -> None:
    try:
        wanted = decode(data, "x").split("\n")
    except ValueError as error:
        with pytest.raises(ValueError) as refused:
            list(decoded_lines(io.BytesIO(data), "x"))
        assert str(refused.value).split(" (")[0] == str(error).split(" (")[0]  # both name the line
        return
    found = list(decoded_lines(io.BytesIO(data), "x"))
    assert found == [line.removesuffix("\r") for line in (wanted if wanted[-1] else wanted[:-1])]
