import os
import threading

import pytest

from lorakit._files import atomic_folder, atomic_write, read_json_lines, write_text


def test_text_is_utf8_with_its_own_line_ends_and_readable_by_all(tmp_path):
    write_text(tmp_path / "file", "κB\r\nIL-2\n")
    assert (tmp_path / "file").read_bytes() == b"\xce\xbaB\r\nIL-2\n"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "file", "former")

    def write(path):
        path.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        atomic_write(tmp_path / "file", write)
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


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_complete_and_replaces_an_old_one(tmp_path):
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "deep" / "run") as temporary:
            assert temporary.parent == tmp_path / "deep"
            (temporary / content).write_text(content)
        assert names(tmp_path / "deep" / "run") == [content] and names(tmp_path / "deep") == ["run"]
        assert (tmp_path / "deep" / "run").stat().st_mode & 0o777 == 0o755


def test_a_folder_that_keeps_others_replaces_its_own_files_only(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("mine")
    (tmp_path / "run" / "file").write_text("old")
    with atomic_folder(tmp_path / "run", keep_others=True) as temporary:
        (temporary / "file").write_text("new")
    assert names(tmp_path / "run") == ["file", "mine"] and (tmp_path / "run" / "file").read_text() == "new"


@pytest.mark.parametrize("keep_others", [False, True])
def test_a_folder_whose_filling_fails_is_unchanged(tmp_path, keep_others):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").write_text("old")
    for folder in (tmp_path / "run", tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"), atomic_folder(folder, keep_others) as temporary:
            (temporary / "file").write_text("new")
            raise OSError("disk full")
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == ["file"]
    assert (tmp_path / "run" / "file").read_text() == "old"


def test_json_lines_skip_lines_that_are_cut_short_or_not_objects(tmp_path):
    (tmp_path / "log").write_text('{"a": 1}\n{"a": \n[3]\n\n{"a": 2}\n{"b"')
    assert list(read_json_lines(tmp_path / "log")) == [(1, {"a": 1}), (5, {"a": 2})]
