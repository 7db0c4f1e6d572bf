"""The kernel's small text files: a file that may not be read is told from one that is empty or missing."""

import errno
import os
from pathlib import Path

MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ELOOP)


def read_text(path: Path) -> str | None:
    """The file's text, stripped; None if there is no such file.

    Raises:
        PermissionError: this user may not read it; the error names the file.
        OSError: the driver behind it fails.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = b""
            while part := os.read(file, 65536):
                content += part
        finally:
            os.close(file)
    except OSError as error:
        if error.errno in MISSING:
            return None
        if error.errno in (errno.EACCES, errno.EPERM):
            raise PermissionError(error.errno, f"{path} may not be read by this user") from error
        raise OSError(error.errno, f"{path}: {error.strerror}") from error
    return content.decode("ascii", errors="replace").strip()


def read_if_allowed(path: Path) -> str:
    """The file's text, "" if it cannot be read for any reason; for callers to whom the reason makes no difference."""
    try:
        return read_text(path) or ""
    except OSError:
        return ""


def read_count(path: Path) -> int | None:
    """The non-negative integer in a file, None if there is no such file.

    Raises:
        OSError: as `read_text`.
        ValueError: the file holds something else.
    """
    text = read_text(path)
    if text is None:
        return None
    if not (text.isdigit() and text.isascii()):
        raise ValueError(f"{path} holds {text!r}, not a non-negative integer")
    return int(text)
