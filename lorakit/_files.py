"""Atomic writes: a file or folder that others may read is complete or not there. And guarded reading, and locks.

A process that is killed while it writes leaves a temporary file or folder `.NAME.XXXXXXXX`. It holds a lock on it while
it lives, so the next write of the same name can tell which ones are left over, and removes them.
"""

import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LEFT_OVER_S = 5.0  # age of an unlocked temporary file; a younger one may be about to be locked
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2(2)
_locked: dict[tuple[int, int], int] = {}  # (device, inode) of a folder locked by this process -> how many times


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then rename it to `path`.

    A symbolic link keeps pointing at its file. A device or a pipe, such as /dev/stdout, is written to directly.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    if path.exists() and not path.is_file():
        write(path)
        return
    given, path = path, path.resolve()
    _remove_left_over(path.parent, path.name)
    with _errors_of(given):
        _write_and_rename(path, write)


def _write_and_rename(path: Path, write: Callable[[Path], object]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        _lock(handle)
        write(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Name what was to be written in an error of the system, rather than its temporary file or nothing."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = os.fspath(path), None
        raise


def write_text(path: Path, text: str) -> None:
    """Write text atomically, as UTF-8 whatever the locale, with its line endings unchanged.

    Bytes of a path that are not UTF-8 are written as escapes.
    """
    atomic_write(path, lambda temporary: temporary.write_bytes(text.encode(errors="backslashreplace")))


def append_text(path: Path, text: Callable[[str], str]) -> None:
    """Append to a file that other processes append to as well, under a lock: all of it is added, or nothing.

    Args:
        path: the file, which need not exist; a pipe or a device is written to directly.
        text: what to add, given the file's first line, "" in a new or empty file.

    Raises:
        OSError: it cannot be written, or the file system has no locks; the file is as it was.
        ValueError: from `text`; the file is as it was, or empty if it did not exist.
    """
    flags = os.O_APPEND | os.O_CLOEXEC
    if path.exists() and not path.is_file():
        with open(os.open(path, os.O_WRONLY | flags), "wb") as file:
            file.write(text("").encode())
        return
    with open(os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644), "rb+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits: others hold it for one write
        length = file.seek(0, os.SEEK_END)
        ends_open = length > 0 and os.pread(file.fileno(), 1, length - 1) != b"\n"
        file.seek(0)
        added = text(file.readline().decode(errors="replace").rstrip("\r\n"))
        data = ("\n" * ends_open + added).encode()
        try:
            if os.write(file.fileno(), data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(file.fileno(), length)
            raise


def check_locks(folder: Path) -> None:
    """Refuse a folder in which files cannot be locked.

    Raises:
        OSError: its file system has no locks, or nothing can be written there.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def atomic_folder(folder: Path, keep_others: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it is flushed to disk and becomes `folder` by one rename.

    Args:
        keep_others: an existing `folder` keeps the files that are not written anew, and the others are replaced one by
            one, in the order of their names. Otherwise the new folder takes the place of the old one.

    Raises:
        OSError: it cannot be written; `folder` is as it was, unless the disk failed between two replacements.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    inside = keep_others and folder.is_dir()
    _remove_left_over(folder if inside else folder.parent, folder.name)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder if inside else folder.parent))
    handle = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(handle)
        yield temporary
        files = sorted(temporary.iterdir())
        for path in (temporary, *temporary.rglob("*")):  # mkdtemp's and safetensors' are the owner's alone
            path.chmod(0o755 if path.is_dir() else 0o644)
        for path in (*files, temporary):
            flush(path)
        if not (inside or _take_place(temporary, folder, keep_others)):
            inside = True  # another process made the folder in the meantime
        if inside:
            for path in files:
                os.replace(temporary / path.name, folder / path.name)
        flush(folder.parent)
    finally:
        os.close(handle)
        if temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, folder: Path, keep_others: bool) -> bool:
    """Rename to `folder`, in place of an old one; False where there is one whose files must be kept."""
    if folder.exists() and not keep_others:
        if _exchange(temporary, folder):  # there is a folder of this name at every moment
            shutil.rmtree(temporary, ignore_errors=True)
            return True
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        os.rename(folder, old)  # onto an empty folder
        try:
            os.rename(temporary, folder)
        except OSError:
            os.rename(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
        return True
    try:
        os.rename(temporary, folder)
    except OSError:
        if not folder.is_dir():
            raise
        return False
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux, glibc 2.28 and later
    names = (os.fsencode(one), os.fsencode(other))
    if other.is_symlink() or rename is None:
        return False
    return rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0


def _lock(handle: int) -> bool:
    """Lock a file or folder for this process alone; False if another has it. Where there are no locks it is True."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _remove_left_over(parent: Path, name: str) -> None:
    """Remove the temporary files and folders of killed processes that wrote this name."""
    made = re.compile(re.escape(f".{name}.") + r"[a-z0-9_]{8}")  # as mkstemp names them
    try:
        found = [path for path in parent.iterdir() if made.fullmatch(path.name)]
    except OSError:
        return
    for path in found:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            about = os.fstat(handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails without locks too: then nothing is removed
            if time.time() - about.st_mtime < LEFT_OVER_S:
                continue
            if stat.S_ISDIR(about.st_mode):
                shutil.rmtree(path, ignore_errors=True)
            elif stat.S_ISREG(about.st_mode):
                path.unlink(missing_ok=True)
        except OSError:
            continue
        finally:
            os.close(handle)


@contextmanager
def folder_lock(folder: Path) -> Iterator[bool]:
    """Lock a folder against other processes while active; yields False if another process has it.

    This process may lock it several times. Nothing is written: the folder itself is what is locked.

    Raises:
        OSError: the folder cannot be opened.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        about = os.fstat(handle)
        key = (about.st_dev, about.st_ino)
        free = key in _locked or _lock(handle)
        if free:
            _locked[key] = _locked.get(key, 0) + 1
        try:
            yield free
        finally:
            if free:
                _locked[key] -= 1
                if not _locked[key]:
                    del _locked[key]
    finally:
        os.close(handle)


def read_bounded(path: Path, most_bytes: int) -> str:
    """Read a text file of UTF-8, if it is a regular file of at most this size.

    Raises:
        ValueError: it is a pipe, a device or similar, it is too large, or it is not UTF-8.
        OSError: it cannot be read.
    """
    check_regular(path, most_bytes)
    return path.read_text(encoding="utf-8")


def check_regular(path: Path, most_bytes: int | None = None) -> None:
    """Refuse what is no regular file, such as a pipe, which would be waited for, or a device that never ends.

    Raises:
        ValueError: it is not one, or larger than `most_bytes`.
        OSError: it cannot be looked at.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{path} is not a regular file; copy its content into one")
    if most_bytes is not None and about.st_size > most_bytes:
        raise ValueError(f"{path} has {about.st_size:,} bytes; at most {most_bytes:,} are read")


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for each line of a log; lines that a killed process cut short are skipped.

    Raises:
        OSError: it cannot be read.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield number, value


def is_utf8(path: str | os.PathLike[str]) -> bool:
    """Whether a path is text to safetensors and tokenizers, which open no other."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def check_not_read(output: Path | None, read: Iterable[str | Path], flag: str) -> None:
    """Refuse to write over a file that the command reads, or that is in a folder of its texts.

    Raises:
        ValueError: The output is such a file.
    """
    if output is None or not output.is_file():
        return
    for source in map(Path, read):
        if source.exists() and output.resolve().is_relative_to(source.resolve()):
            where = "which is read" if source.is_file() else f"which is in {source}, and that is read"
            raise ValueError(f"{flag} {output} would replace a file {where}; give another name")
