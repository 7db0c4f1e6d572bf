"""Documents get file names that are safe and unique."""

from lorakit.data.formats.file_names import file_names
from lorakit.data.formats.record import Document


def test_file_names_are_safe_and_unique() -> None:
    ids = ["a", "A", "../x", "", "b.c", "2", "5"]
    assert file_names([Document((), None, "", "", id=name) for name in ids]) == ["a", "A-2", "3", "4", "b.c", "2", "5"]
    ids = ["d"] * 10 + ["e"]  # sorted by name, those of one id stay in their order
    assert file_names([Document((), None, "", "", id=name) for name in ids])[8:] == ["d-09", "d-10", "e"]
