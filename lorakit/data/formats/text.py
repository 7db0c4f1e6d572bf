"""What the readers of text files share: decoding, and the place of each line for messages."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """A sentence as its source has it: one tag per word, in the source's own scheme.

    Attributes:
        words: the words.
        tags: as many tags.
        place: where it is, for messages: "train.tsv:17".
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    place: str


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, line) for every line of a UTF-8 file, without line ends (LF or CRLF) and byte-order mark.

    Raises:
        ValueError: the file cannot be read or is not UTF-8; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error
    # not splitlines(): it also breaks at U+0085 and U+2028, which occur inside words
    for number, line in enumerate(text.split("\n"), start=1):
        yield f"{path}:{number}", line.removesuffix("\r")
