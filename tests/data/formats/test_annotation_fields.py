"""Records with several fields: the one that holds the annotations is read, and every other one is named."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorakit.data.corpus import read_ner, read_written
from lorakit.data.tags import spans
from tests.support.corpora import named_columns, write_lines, write_text

TEXT = "EU rejects German call"
WORDS = TEXT.split()
PLACES = [(0, 2), (3, 10), (11, 17), (18, 22)]
TOKENS = [
    {"text": word, "start": start, "end": end} for word, (start, end) in zip(WORDS, PLACES, strict=True)
]  # Prodigy's
SPANS = [{"start": 0, "end": 2, "label": "ORG"}, {"start": 11, "end": 17, "label": "MISC"}]
TRIPLES = [[0, 2, "ORG"], [11, 17, "MISC"]]
TAGS = ["B-ORG", "O", "B-MISC", "O"]
FOUND = [("ORG", "EU"), ("MISC", "German")]


def entities(path: Path, **how: object) -> list[tuple[str, str]]:
    return [
        (span.type, " ".join(sentence.words[span.start : span.end]))
        for sentence in read_ner(path, **how).train
        for span in spans(sentence.tags)
    ]


def about(path: Path, **how: object) -> list[str]:
    """The notes, without the one that a file has no splits and without places."""
    return [note.rpartition(" (")[0] for note in read_ner(path, **how).notes if " is train: " not in note]


FIELDS = {
    "entities and objects as tokens": ({"tokens": TOKENS, "entities": SPANS}, "entities", []),
    "ents and objects as tokens": ({"tokens": TOKENS, "ents": SPANS}, "ents", []),
    "tags and no entities": ({"tokens": WORDS, "ner_tags": TAGS, "entities": []}, "ner_tags", ["entities"]),
    "tags and no spans": ({"tokens": WORDS, "ner_tags": TAGS, "spans": []}, "ner_tags", ["spans"]),
    "tags and no label": ({"tokens": WORDS, "tags": TAGS, "label": []}, "tags", ["label"]),
    "label and no spans": ({"label": TRIPLES, "spans": []}, "label", ["spans"]),
    "spans and no label": ({"label": [], "spans": SPANS}, "spans", ["label"]),
    "ents and no spans": ({"spans": [], "ents": SPANS}, "ents", ["spans"]),
    "mentions": ({"mentions": SPANS}, "mentions", []),
}


@pytest.mark.parametrize("name", FIELDS)
def test_the_field_that_holds_annotations_is_read_and_an_empty_one_named(tmp_path: Path, name: str) -> None:
    fields, used, empty = FIELDS[name]
    path = write_lines(tmp_path / "a.jsonl", {"text": TEXT, **fields})
    assert entities(path) == FOUND
    assert about(path) == [f"field {other!r} is empty in every record, so {used!r} is read" for other in empty]
    [(_, written)] = read_written(path)
    assert f" {used}" in written.files[0].evidence


def test_examples_that_were_rejected_are_left_out_whatever_the_field(tmp_path: Path) -> None:
    record = {"text": TEXT, "tokens": TOKENS, "spans": [], "ents": SPANS, "answer": "accept"}
    path = write_lines(tmp_path / "a.jsonl", record, record | {"answer": "reject"})
    assert entities(path) == FOUND
    assert "example that the annotator answered with 'reject', left out" in about(path)


def test_all_records_decide_and_not_the_first(tmp_path: Path) -> None:
    first = {"text": TEXT, "tokens": WORDS, "ner_tags": ["O"] * 4, "entities": [], "label": []}
    path = write_lines(tmp_path / "a.jsonl", *[first] * 9, first | {"ner_tags": TAGS})
    assert entities(path) == FOUND
    path = write_lines(tmp_path / "b.jsonl", *[first] * 9, first | {"entities": SPANS})
    assert entities(path) == FOUND
    assert "field 'ner_tags' is not used; columns={'tag': 'ner_tags'} reads it instead" in about(path)
    path = write_lines(tmp_path / "c.jsonl", *[first] * 9, first | {"label": TRIPLES})
    assert entities(path) == FOUND


@pytest.mark.parametrize(
    ("fields", "used", "same"),
    [
        ({"tokens": WORDS, "ner_tags": TAGS, "entities": SPANS}, "ner_tags", "entities"),
        ({"label": TRIPLES, "spans": SPANS}, "label", "spans"),
        ({"spans": SPANS, "ents": SPANS[::-1]}, "spans", "ents"),
        ({"tokens": WORDS, "tags": TAGS, "ner_tags": TAGS}, "tags", "ner_tags"),
    ],
)
def test_two_fields_that_hold_the_same_are_no_question(tmp_path: Path, fields: dict, used: str, same: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": TEXT, **fields})
    assert entities(path) == FOUND
    assert about(path) == [f"field {same!r} holds the same annotations as {used!r}, which is read"]


def test_fields_that_take_turns_may_both_hold_the_same(tmp_path: Path) -> None:
    one, other, both = {"spans": SPANS, "ents": []}, {"spans": [], "ents": SPANS}, {"spans": SPANS, "ents": SPANS[::-1]}
    path = write_lines(tmp_path / "a.jsonl", *({"text": TEXT} | fields for fields in (one, other, both)))
    assert entities(path) == FOUND * 3


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": WORDS, "ner_tags": TAGS, "entities": SPANS[:1]},
        {"label": TRIPLES, "spans": SPANS[:1]},
        {"spans": SPANS, "ents": SPANS[:1]},
        {"tokens": WORDS, "tags": TAGS, "ner_tags": ["B-ORG", "O", "O", "O"]},
        {"tokens": WORDS, "tags": [1, 0, 2, 0], "spans": SPANS[:1]},  # numbers cannot be compared
    ],
)
def test_two_fields_that_differ_are_refused_until_one_is_named(tmp_path: Path, fields: dict) -> None:
    same = {"text": "a", **{name: ["O"] if name.endswith("tags") else [] for name in fields}, "tokens": ["a"]}
    path = write_lines(tmp_path / "a.jsonl", same, {"text": TEXT, **fields})
    one, other = (name for name in fields if name != "tokens")
    message = rf"a.jsonl:2: '{one}' and '{other}' both hold annotations, and they differ; choose one with "
    with pytest.raises(ValueError, match=f"{message}columns={{'tag': '{one}'}} or columns={{'tag': '{other}'}}"):
        read_ner(path)
    write_text(tmp_path / "labels.txt", "O\nB-ORG\nB-MISC\n")
    write_text(tmp_path / "label.json", json.dumps({"O": 0, "B-ORG": 1, "B-MISC": 2}))
    assert entities(path, columns={"tag": one}) == FOUND
    assert entities(path, columns={"tag": other}) == FOUND[:1]


def test_annotations_in_one_field_or_another_are_all_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": TEXT, "spans": SPANS}, {"text": "NATO", "entities": SPANS[:1]})
    assert entities(path) == [*FOUND, ("ORG", "NA")]
    assert "annotations are read from 'spans' in 1 record, 'entities' in 1 record" in about(path)
    path = write_lines(tmp_path / "a.jsonl", {"text": TEXT, "spans": SPANS}, {"text": TEXT, "mentions": SPANS})
    with pytest.raises(
        ValueError, match="are in 'spans' and 'mentions', in different records; put all of them into one"
    ):
        read_ner(path)
    assert entities(write_lines(path, *[{"text": TEXT, "mentions": SPANS}] * 2)) == FOUND * 2


@pytest.mark.parametrize("empty", ["spans", "label"])
def test_a_field_of_another_shape_is_named_where_no_other_is_full(tmp_path: Path, empty: str) -> None:
    found = [{"begin": 0, "end": 2, "type": "ORG"}]
    path = write_lines(tmp_path / "a.jsonl", {"text": TEXT, empty: [], "annotated": found})
    assert entities(path) == []
    assert "field 'annotated' of objects or lists is not used" in about(path)
    found[0]["start"] = found[0].pop("begin")
    assert entities(write_lines(path, {"text": TEXT, empty: [], "annotated": found})) == FOUND[:1]


def test_a_text_by_another_name_is_refused_and_its_name_is_the_fix(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"id": "1", "sentence": TEXT, "entities": SPANS})
    with pytest.raises(ValueError, match="a.jsonl:1: .*; if 'sentence' is the annotated text, call it 'text'"):
        read_ner(path)
    assert entities(write_lines(path, {"id": "1", "text": TEXT, "entities": SPANS})) == FOUND


def test_a_named_field_must_hold_annotations(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": TEXT, "tokens": WORDS, "ner_tags": TAGS, "spans": []})
    for name in ("spans", "text", "nothing"):
        with pytest.raises(
            ValueError, match=f"columns={{'tag': '{name}'}}: no field '{name}' .* fields that do are ner_tags"
        ):
            read_ner(path, columns={"tag": name})
    with pytest.raises(ValueError, match="columns={'word': 1}: no field '1' of .* holds lists of words"):
        read_ner(path, columns={"word": "1"})
    with pytest.raises(ValueError, match="columns={'word': 'tokens'}: .* has spans of texts in 'ents'.*leave word out"):
        read_ner(write_lines(path, {"text": TEXT, "tokens": WORDS, "ents": SPANS}), columns={"word": "tokens"})
    assert entities(path) == FOUND


# Layers ---------------------------------------------------------------------------------------------------------------

LAYERS = {
    "tokens": WORDS,
    "ner_tags": TAGS,
    "ner_nested_tags": ["O", "O", "B-LOC", "O"],
    "chunk_tags": ["B-NP", "B-VP", "B-NP", "I-NP"],
    "pos_tags": ["NNP", "VBZ", "JJ", "NN"],
}


def as_json(folder: Path) -> Path:
    return write_lines(folder / "a.jsonl", LAYERS)


def as_parquet(folder: Path) -> Path:
    import datasets

    datasets.disable_progress_bars()
    features = {"tokens": datasets.List(datasets.Value("string"))}
    for name, tags in LAYERS.items():
        if name != "tokens":
            features[name] = datasets.List(datasets.ClassLabel(names=sorted({"O", *tags})))
    rows = datasets.Dataset.from_dict({name: [value] for name, value in LAYERS.items()}, datasets.Features(features))
    rows.to_parquet(str(folder / "a.parquet"))
    return folder / "a.parquet"


@pytest.mark.parametrize("make", [as_json, as_parquet])
def test_other_layers_of_tags_are_named_and_may_be_chosen(tmp_path: Path, make) -> None:
    path = make(tmp_path)
    assert entities(path) == FOUND
    said = about(path)
    assert (
        "field 'ner_nested_tags', with 1 entity, is not used; columns={'tag': 'ner_nested_tags'} reads it instead"
        in said
    )
    assert "field 'chunk_tags', with 3 entities, is not used; columns={'tag': 'chunk_tags'} reads it instead" in said
    assert "field 'pos_tags' is not used; columns={'tag': 'pos_tags'} reads it instead" in said
    for how in ({"layer": "inner"}, {"columns": {"tag": "ner_nested_tags"}}):
        assert entities(path, **how) == [("LOC", "German")]
        assert any(note.startswith("field 'ner_tags', with 2 entities, is not used") for note in about(path, **how))
        assert not any("no effect" in note for note in about(path, **how))
    assert entities(path, layer="outer") == FOUND
    assert entities(path, columns={"tag": "chunk_tags"})[-1] == ("NP", "German call")


def test_fields_of_tags_by_other_names_are_found_by_their_values(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"tokens": WORDS, "bilou": ["U-ORG", "O", "U-MISC", "O"]})
    assert entities(path) == FOUND
    write_lines(path, {"tokens": WORDS, "gold": TAGS, "predicted": ["O", "O", "B-MISC", "O"]})
    with pytest.raises(ValueError, match="'gold' and 'predicted' both hold annotations, and they differ; choose one"):
        read_ner(path)
    assert entities(path, columns={"tag": "gold"}) == FOUND
    write_lines(path, {"tokens": WORDS, "types": [1, 0, 2, 0]})
    with pytest.raises(ValueError, match="name that of the tags, such as columns={'tag': 'types'}"):
        read_ner(path)
    write_text(tmp_path / "label.json", json.dumps({"O": 0, "B-ORG": 1, "B-MISC": 2}))
    assert entities(path, columns={"tag": "types"}) == FOUND
    assert "numbers of 'types' are named by label.json" in about(path, columns={"tag": "types"})


def test_the_field_of_the_training_split_holds_for_the_others(tmp_path: Path) -> None:
    row = {"text": TEXT, "tokens": WORDS, "ner_tags": TAGS, "entities": []}
    write_lines(tmp_path / "train.json", row)
    write_lines(tmp_path / "test.json", row | {"ner_tags": ["O"] * 4})
    data = read_ner(tmp_path)
    assert (data.train[0].tags, data.test[0].tags) == (tuple(TAGS), ("O",) * 4)
    write_lines(tmp_path / "train.json", {"text": TEXT, "mentions": SPANS})
    write_lines(tmp_path / "test.json", {"text": TEXT, "mentions": []})
    assert read_ner(tmp_path).test[0].tags == ("O",) * 4


def test_words_marked_without_a_text_are_refused_and_gliners_form_is_the_fix(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"tokens": WORDS, "spans": SPANS})
    with pytest.raises(ValueError, match='as GLiNER writes them, with the last word of each entity: {"tokenized_text"'):
        read_ner(path)
    write_lines(path, {"tokenized_text": WORDS, "ner": [[0, 0, "ORG"], [2, 2, "MISC"]]})
    assert entities(path) == FOUND


def test_types_that_are_tags_are_refused_and_the_key_of_pipelines_is_the_fix(tmp_path: Path) -> None:
    pieces = [{"start": 0, "end": 1, "label": "B-ORG"}, {"start": 1, "end": 2, "label": "I-ORG"}]
    path = write_lines(tmp_path / "a.jsonl", {"text": TEXT, "spans": pieces})
    with pytest.raises(ValueError, match="types of 'spans' are the tags of words, such as B-ORG and I-ORG: call their"):
        read_ner(path)
    pieces = [{"entity": piece.pop("label"), **piece} for piece in pieces]
    assert entities(write_lines(path, {"text": TEXT, "spans": pieces})) == FOUND[:1]
    write_lines(path, {"text": "B-cell and T-cell", "spans": [{"start": 0, "end": 6, "label": "B-cell"}]})
    assert entities(path) == [("B-cell", "B-cell")]  # a type, not a tag


# Any records ----------------------------------------------------------------------------------------------------------


@st.composite
def records(draw: st.DrawFn) -> list[dict]:
    """Records of up to three fields of annotations, each empty or not."""
    names = draw(st.lists(st.sampled_from(["spans", "entities", "ents", "label"]), unique=True, max_size=2))
    with_tags = draw(st.booleans()) or not names
    found = []
    for _ in range(draw(st.integers(1, 4))):
        record: dict = {"text": TEXT}
        for name in names:
            whole = TRIPLES if name == "label" else SPANS
            record[name] = whole[: draw(st.integers(0, 2))]
        if with_tags:
            record |= {"tokens": WORDS, "ner_tags": draw(st.sampled_from([TAGS, ["B-ORG", "O", "O", "O"], ["O"] * 4]))}
        found.append(record)
    return found


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(records())
def test_no_annotation_is_lost_without_a_word(tmp_path_factory: pytest.TempPathFactory, made: list[dict]) -> None:
    path = write_lines(tmp_path_factory.mktemp("any") / "a.jsonl", *made)
    fields = [name for name in made[0] if name not in ("text", "tokens")]
    counts = {
        name: sum(len(record[name]) - (record[name].count("O") if name == "ner_tags" else 0) for record in made)
        for name in fields
    }
    try:
        read, said = len(entities(path)), " ".join(about(path))
    except ValueError as error:
        assert "both hold annotations, and they differ" in str(error) or "in different records" in str(error)
        for columns in named_columns(str(error)):
            assert len(entities(path, columns=columns)) == counts[columns["tag"]]
        return
    assert read == max(counts.values()) or "annotations are read from" in said
    for name in fields:
        assert repr(name) in said or read >= counts[name]
        if counts[name] and read != counts[name]:
            assert f"field {name!r}" in said or f"{name!r} in " in said
