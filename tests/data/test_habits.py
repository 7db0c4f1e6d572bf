from types import SimpleNamespace

import pytest

from lorakit.data.habits import WordHabits, from_json, habits_of, learn_habits, remember_habits, split_like
from lorakit.data.pretokenizer import split_words

FRENCH = (["Il", "est", "à", "l'", "hôpital", "d'", "Aix"], ["O"] * 7)
THAI = (list("กรุงเทพ"), ["O"] * 7)


def test_elisions_are_a_habit_of_corpora_that_have_them_apart() -> None:
    assert learn_habits([FRENCH] * 10) == WordHabits(elisions=True)
    assert learn_habits([FRENCH]) == WordHabits()  # too few to tell
    together = (["l'hôpital", "d'Aix"], ["O", "O"])
    assert learn_habits([FRENCH] * 10 + [together] * 30) == WordHabits()
    assert learn_habits([(["the", "gene", "'s", "5'-flanking", "rock", "'n'"], ["O"] * 6)] * 50) == WordHabits()


def test_characters_are_a_habit_of_corpora_that_have_them_as_words() -> None:
    whole = (["ก", "รุ", "ง"], ["O"] * 3)
    assert learn_habits([whole] * 10) == WordHabits(characters=("THAI",))
    assert learn_habits([THAI] * 10) == WordHabits(characters=("THAI",), marks=True)
    assert learn_habits([(["กรุงเทพ"], ["O"])] * 50) == WordHabits()


@pytest.mark.parametrize(
    ("text", "habits", "words"),
    [
        ("à l'hôpital d’Aix.", WordHabits(elisions=True), ["à", "l'", "hôpital", "d’", "Aix", "."]),
        ("don't, it's O'B", WordHabits(elisions=True), ["don't", ",", "it", "'s", "O'B"]),
        ("ไปเที่ยว IL-2", WordHabits(characters=("THAI",)), ["ไ", "ป", "เ", "ที่", "ย", "ว", "IL-2"]),
        ("ที่", WordHabits(characters=("THAI",), marks=True), list("ที่")),
        ("ไปเที่ยว IL-2", WordHabits(), ["ไปเที่ยว", "IL-2"]),
    ],
)
def test_texts_are_split_by_the_habit_and_places_stay_exact(text: str, habits: WordHabits, words: list[str]) -> None:
    found = split_like(text, habits)
    assert [word.text for word in found] == words
    assert all(text[word.start : word.end] == word.text for word in found)


def test_the_usual_habit_is_the_usual_rule_and_leaves_no_trace() -> None:
    text = "à l'hôpital d'Aix, IL-2 (p50)."
    assert split_like(text, WordHabits()) == split_words(text)
    model = SimpleNamespace(config=SimpleNamespace())
    remember_habits(model, WordHabits())
    assert vars(model.config) == {}


def test_a_model_remembers_the_habit_of_its_corpus() -> None:
    model = SimpleNamespace(config=SimpleNamespace())
    habits = WordHabits(elisions=True, characters=("THAI",))
    remember_habits(model, habits)
    assert habits_of(model) == habits == from_json(habits.to_json())
    remember_habits(model, WordHabits())
    assert habits_of(model) == WordHabits()


def test_kept_tokens_are_not_split() -> None:
    found = split_like("<l'URL> l'eau", WordHabits(elisions=True), ["<l'URL>"])
    assert [word.text for word in found] == ["<l'URL>", "l'", "eau"]


@pytest.mark.parametrize("stored", [None, 3, {"characters": "THAI", "elisions": 1}, {"characters": ["KLINGON"]}])
def test_what_is_not_known_is_the_usual_habit(stored: object) -> None:
    assert from_json(stored) == WordHabits()
