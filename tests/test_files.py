import os
import threading

import pytest

from lorakit._files import write_text, write_whole


def test_a_text_is_utf8_with_its_own_line_ends_and_readable_by_all(tmp_path):
    write_text(tmp_path / "file", "κB\r\nIL-2\n")
    assert (tmp_path / "file").read_bytes() == b"\xce\xbaB\r\nIL-2\n"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_what_fails_half_way_leaves_the_former_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "file", "former")

    def write(path):
        path.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_whole(tmp_path / "file", write)
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "half \udcff")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "former"


def test_a_link_stays_a_link_and_its_file_is_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "file")
    for text in ("first", "second"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "elsewhere" / "file").read_text() == text


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "text")
    reader.join()
    assert read == ["text"] and (tmp_path / "pipe").is_fifo()
