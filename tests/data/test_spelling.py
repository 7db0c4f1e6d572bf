import pytest

from lorakit.data.spelling import plain_tags, spelling_of


@pytest.mark.parametrize(
    ("tags", "spelling", "plain"),
    [
        ("O B-PER I-PER", "prefix", "O B-PER I-PER"),
        ("O B_PER I_PER", "prefix", "O B-PER I-PER"),
        ("O M-NAME W-a-b", "prefix", "O M-NAME W-a-b"),
        ("O PER-B PER-I", "suffix", "O B-PER I-PER"),
        ("O PER_B a-b_E", "suffix", "O B-PER E-a-b"),
        ("- PER_B", "suffix", "O B-PER"),
        ("O B I", "untyped", "O B-ENTITY I-ENTITY"),
        ("O PER cell_line", "types", "O I-PER I-cell_line"),
        ("O", "prefix", "O"),
        ("o b-per i-per", "lower", "O B-per I-per"),
        ("O b_PER s_PER", "lower", "O B-PER S-PER"),
        ("o per-b per-i", "lower", "O B-per I-per"),
        ("_ B-PER I-PER", "prefix", "O B-PER I-PER"),
        ("O e-mail", "types", "O I-e-mail"),
        ("O E/M PER", "types", "O I-E/M I-PER"),
    ],
)
def test_every_spelling_becomes_letter_hyphen_type(tags: str, spelling: str, plain: str) -> None:
    words = tags.split()
    assert spelling_of(set(words)) == spelling
    assert list(map(plain_tags(words, spelling).__getitem__, words)) == plain.split()


@pytest.mark.parametrize(
    "tags",
    [
        "NN VBD",
        "O B-PER PER",
        "O B-PER PER-B I",
        "O +",
        "O ''",
        "O B-",
        "o per",
        "_ PER",
        "o b-per PER",
        "O o b-per",
        "O B/PER I/PER",
        "O S.PER",
        "O PER/B",
    ],
)
def test_what_has_no_common_spelling_has_none(tags: str) -> None:
    assert spelling_of(set(tags.split())) is None


def test_types_count_only_where_they_may() -> None:
    assert spelling_of({"O", "PER"}, bare=False) is None
