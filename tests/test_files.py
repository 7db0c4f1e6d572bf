import errno
import fcntl
import os
import re
import sys
import threading
from pathlib import Path

import pytest

from lorakit._files import (
    append_text,
    atomic_folder,
    atomic_write,
    check_locks,
    check_not_read,
    check_regular,
    read_bounded,
    read_json_lines,
    write_text,
)
from lorakit.cli.__main__ import main
from tests.support.processes import start


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
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "former"
    write_text(tmp_path / "file", "a byte of a path \udcff")
    assert (tmp_path / "file").read_text() == "a byte of a path \\udcff"


def test_processes_that_append_at_the_same_time_lose_nothing_and_write_one_header(tmp_path):
    code = """
        from pathlib import Path
        from lorakit._files import append_text
        for row in range(200):
            append_text(Path({path!r}), lambda first: ("header\\n" if not first else "") + "NAME" * 2000 + "\\n")
    """.format(path=str(tmp_path / "file"))
    for process in [start(code.replace("NAME", name)) for name in ("a", "b", "c")]:
        process.communicate(timeout=120)
        assert process.returncode == 0
    lines = (tmp_path / "file").read_text().splitlines()
    assert lines[0] == "header"
    assert sorted(lines[1:]) == sorted(name * 2000 for name in "abc" for _ in range(200))


def test_a_failed_append_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    append_text(tmp_path / "file", lambda first: "first")
    append_text(tmp_path / "file", lambda first: f"after {first}\n")  # a line that was left open is ended
    assert (tmp_path / "file").read_text() == "first\nafter first\n"
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:3]))
        with pytest.raises(OSError, match="No space left on device"):
            append_text(tmp_path / "file", lambda first: "second\n")

    def refuse(first):
        raise ValueError(first)

    with pytest.raises(ValueError, match="first"):
        append_text(tmp_path / "file", refuse)
    assert (tmp_path / "file").read_text() == "first\nafter first\n"


def test_a_pipe_is_appended_to_like_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    append_text(tmp_path / "pipe", lambda first: f"{first}row\n")
    assert os.read(reader, 100) == b"row\n"
    os.close(reader)


def test_a_folder_without_locks_is_refused(tmp_path, monkeypatch):
    check_locks(tmp_path)

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(OSError, match="No locks available"):
        check_locks(tmp_path)
    with pytest.raises(OSError, match="No locks available"):
        append_text(tmp_path / "file", lambda first: "row\n")
    assert (tmp_path / "file").read_text() == ""


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


def test_every_part_of_a_folder_can_be_read_by_others_whatever_wrote_it(tmp_path):
    with atomic_folder(tmp_path / "run") as temporary:
        (temporary / "inner").mkdir(0o700)
        for path in (temporary / "weights", temporary / "inner" / "weights"):
            path.touch(0o600)  # as safetensors does
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "run").rglob("*")}
    assert modes == {"inner": 0o755, "weights": 0o644}


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


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_removed_by_the_next_write_of_that_name(tmp_path, kind):
    left, other, young = (tmp_path / name for name in (".out.abcd1234", ".else.abcd1234", ".out.abcd5678"))
    for path in (left, other, young):
        path.mkdir() if kind == "folder" else path.write_text("half")
    for path in (left, other):
        os.utime(path, (0, 0))
    atomic_write(tmp_path / "out", lambda path: path.write_text("new"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".else.abcd1234", ".out.abcd5678", "out"]


def test_what_a_running_process_writes_is_not_removed(tmp_path):
    with atomic_folder(tmp_path / "out") as first:
        (first / "a").write_text("1")
        os.utime(first, (0, 0))
        with atomic_folder(tmp_path / "out") as second:
            (second / "b").write_text("2")
        assert (first / "a").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can exchange two names")
def test_a_replaced_folder_is_there_at_every_moment(tmp_path, monkeypatch):
    """Two renames would leave a moment, between them, without any: then nothing had that name after a kill."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("1")
    monkeypatch.setattr("lorakit._files.os.rename", lambda *_: pytest.fail("renamed away"))
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "new").write_text("2")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_regular_file_or_too_large_is_refused_before_reading(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big").write_text("x" * 11)
    for path, message in (("pipe", "not a regular file"), ("big", "has 11 bytes; at most 10 are read")):
        with pytest.raises(ValueError, match=message):
            read_bounded(tmp_path / path, 10)
    with pytest.raises(ValueError, match="not a regular file"):
        check_regular(Path("/dev/zero"))
    assert read_bounded(tmp_path / "big", 11) == "x" * 11


def test_an_output_that_would_replace_what_is_read_is_refused_and_another_name_is_not(tmp_path):
    (tmp_path / "texts").mkdir()
    read, link = tmp_path / "texts" / "a.txt", tmp_path / "link.txt"
    read.write_text("IL-2")
    link.symlink_to(read)
    for output, sources in ((read, [read]), (link, [read]), (read, [link]), (read, ["hub/id", tmp_path / "texts"])):
        with pytest.raises(ValueError, match="--output .* would replace a file which is .*; give another name"):
            check_not_read(output, sources, "--output")
    for output in (tmp_path / "texts" / "new.jsonl", tmp_path / "new.jsonl", None, Path("-"), Path("/dev/stdout")):
        check_not_read(output, [read, tmp_path / "texts", "-", "hub/id"], "--output")


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "--adapter", "x", "--file", "FILE.txt", "--output", "FILE.txt"],
        ["predict", "--adapter", "x", "--documents", "FILE.jsonl", "--output", "FILE.jsonl"],
        ["predict", "--adapter", "x", "--documents", ".", "--output", "FILE.jsonl"],
        ["evaluate", "--adapter", "x", "--dataset", "FILE.conll", "--json", "FILE.conll"],
        ["evaluate", "--adapter", "x", "--dataset", "FILE.json", "--errors", "FILE.json"],
        ["params", "FILE.json", "--json", "FILE.json"],
        ["energy", "merge", "FILE.jsonl", "--json", "FILE.jsonl"],
        ["data", "convert", "FILE.conll", "FILE.conll", "--format", "csv"],
    ],
)
def test_no_command_replaces_what_it_reads(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = Path(command[-1] if "FILE" in command[-1] else "FILE.conll")
    given.write_text("IL-2")
    try:
        status = main(command)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2 and given.read_text() == "IL-2" and len(list(tmp_path.iterdir())) == 1
    assert re.search("would replace a file which is|exists already; give a new file", capsys.readouterr().err)
