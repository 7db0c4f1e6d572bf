"""What the readers of text files share: decoding, and the place of each line for messages."""

from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from pathlib import Path

MOST_CHARACTERS = 1 << 24  # of a line


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte-order mark and with its line ends.

    Raises:
        ValueError: the file cannot be read or is not UTF-8 text; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    text = decode(data, path)
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{path}:{line}: a NUL byte, so it is not UTF-8 text; convert the file to UTF-8")
    return text


def decode(data: bytes, source: Path | str) -> str:
    """The text of these bytes in UTF-8, without a byte-order mark and with its line ends.

    Raises:
        ValueError: they are not UTF-8; the message names the line of `source`.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1  # not data: there the places count a byte-order mark
        raise ValueError(f"{source}:{line}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error


def decoded_lines(data: Iterable[bytes], source: Path | str) -> Iterator[str]:
    """Yield the lines of an open binary file one by one, as `decode` reads them, without their ends (LF or CRLF).

    Raises:
        ValueError: a line is not UTF-8; the message names it.
    """
    for number, line in enumerate(data, start=1):
        line = line.removeprefix(BOM_UTF8) if number == 1 else line
        if not line:  # a file of a byte-order mark alone has no line
            continue
        try:
            yield line.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ValueError(f"{source}:{number}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, line) for every line of a UTF-8 file, without line ends (LF or CRLF) and byte-order mark.

    Raises:
        ValueError: the file cannot be read or is not UTF-8 text, or a line is absurdly long; the message names it.
    """
    # not splitlines(): it also breaks at U+0085 and U+2028, which occur inside words
    text = read_text(path)
    check_lines(text, path)
    for number, line in enumerate(text.split("\n"), start=1):
        yield f"{path}:{number}", line.removesuffix("\r")


def check_lines(text: str, path: Path) -> None:
    """Refuse a line that is too long for a word and its tag, or for a sentence.

    Raises:
        ValueError: with its number.
    """
    if len(text) <= MOST_CHARACTERS:
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > MOST_CHARACTERS:
            raise ValueError(
                f"{path}:{number}: a line of {len(line):,} characters, and at most {MOST_CHARACTERS:,} are read; a line"
                " holds a word and its tag, or the JSON object of one sentence"
            )


def read_head(path: Path, size: int = 65536) -> str:
    """The beginning of a text file, for recognising its format; "" if it cannot be read or is not UTF-8.

    Args:
        path: the file.
        size: how many bytes to look at.
    """
    try:
        with path.open("rb") as file:
            data = file.read(size)
    except OSError:
        return ""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        cut = error.end == len(data) and len(data) - error.start < 4  # in the middle of a character
        return data[: error.start].decode("utf-8-sig") if cut else ""
