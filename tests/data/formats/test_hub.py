"""The hub without network: the two functions that would use it are handed in."""

from pathlib import Path

import pytest

from lorakit.data.corpus import read_hub
from lorakit.data.formats.record import Document
from tests.support.corpora import LABELS, ROW, write_folder


def no_snapshot(*_: object, **__: object) -> str:
    raise OSError("no such repository")


def no_dataset(name: str, **_: object) -> dict:
    raise RuntimeError("Dataset scripts are no longer supported, but found bionlp2004.py")


def parquet_only(dataset: dict):
    """What the hub does for a dataset with a script: refused, except on the branch of the parquet conversion."""

    def load_dataset(name: str, revision: str = "main") -> dict:
        return dataset if revision == "refs/convert/parquet" else no_dataset(name)

    return load_dataset


def test_a_hub_repository_with_plain_files_is_read_from_them(tmp_path: Path) -> None:
    def snapshot_download(name: str, repo_type: str, allow_patterns: list[str]) -> str:
        assert (name, repo_type) == ("tner/bionlp2004", "dataset")
        wanted = ["dataset/train.json", "dataset/valid.json", "dataset/test.json", "dataset/label.json"]
        assert set(wanted) <= set(allow_patterns)
        (tmp_path / "dataset").mkdir()
        write_folder(tmp_path / "dataset", LABELS, train=[ROW], valid=[ROW], test=[ROW])
        return str(tmp_path)

    corpus = read_hub("tner/bionlp2004", snapshot_download, no_dataset)
    assert corpus.labels == tuple(LABELS)
    assert {split: len(rows) for split, rows in corpus.splits.items()} == {"train": 1, "validation": 1, "test": 1}


def hub_dataset(tags: list[int], classes: bool) -> dict:
    import datasets

    label = datasets.ClassLabel(names=list(LABELS)) if classes else datasets.Value("int32")
    columns = {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": datasets.Sequence(label)}
    rows = {"tokens": [["IL-2", "gene"]], "ner_tags": [tags]}
    split = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
    return datasets.DatasetDict({"train": split, "test": split})


def test_a_hub_dataset_is_read_by_its_class_names_from_the_parquet_branch() -> None:
    corpus = read_hub("owner/name", no_snapshot, parquet_only(hub_dataset([1, 2], classes=True)))
    assert corpus.labels == tuple(LABELS)
    assert corpus.splits["train"] == [Document(("IL-2", "gene"), ("B-DNA", "I-DNA"), "owner/name train:1")]
    assert corpus.notes == ["no validation split: owner/name has none"]


def test_hub_numbers_without_class_names_are_refused() -> None:
    with pytest.raises(ValueError, match="owner/name train:1: tag 1 is a number; put label.json"):
        read_hub("owner/name", no_snapshot, parquet_only(hub_dataset([1, 2], classes=False)))


def test_a_hub_that_gives_nothing_says_what_each_route_answered_and_what_to_do() -> None:
    with pytest.raises(
        ValueError,
        match="'owner/name' is not a local file or folder, .*files: OSError: no such repository; datasets: "
        "RuntimeError: Dataset scripts are no longer supported.*; parquet branch: "
        ".*Without network, give a local folder",
    ):
        read_hub("owner/name", no_snapshot, no_dataset)


def test_an_unreachable_hub_is_asked_once() -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Name or service not known")

    def must_not_be_called(*_: object, **__: object) -> dict:
        raise AssertionError("the hub was asked again")

    with pytest.raises(ValueError, match=r"LocalEntryNotFoundError: Name or service not known\)\. Without network"):
        read_hub("owner/name", unreachable, must_not_be_called)


def test_splits_go_by_all_their_names_and_others_are_noted() -> None:
    rows = hub_dataset([1, 2], classes=True)["train"]
    loaded = {"train": rows, "dev": rows, "testb": rows, "unsupervised": rows}
    corpus = read_hub("owner/name", no_snapshot, parquet_only(loaded))
    assert list(corpus.splits) == ["train", "validation", "test"]
    assert [file.path for file in corpus.files] == ["owner/name train", "owner/name dev", "owner/name testb"]
    assert corpus.unused == ("unsupervised",)
    assert corpus.notes == ["not read, since their names are of no split: unsupervised"]


def test_the_names_of_numbers_are_fetched_with_the_plain_files(tmp_path: Path) -> None:
    def snapshot_download(name: str, repo_type: str, allow_patterns: list[str]) -> str:
        write_folder(tmp_path, train=[{"tokens": ["IL-2"], "ner_tags": [1]}])
        if "README.md" in allow_patterns:
            card = "  features:\n  - name: ner_tags\n    sequence:\n      class_label:\n        names:\n"
            card += "          '0': O\n          '1': B-DNA\n"
            (tmp_path / "README.md").write_text(f"---\ndataset_info:\n{card}---\n")
        return str(tmp_path)

    corpus = read_hub("owner/name", snapshot_download, no_dataset)
    assert corpus.splits["train"][0].tags == ("B-DNA",)
