"""Corpora of the Hugging Face hub: the only reader that uses the network."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def fetch(
    name: str,
    patterns: Sequence[str],
    is_corpus: Callable[[Path], bool],
    snapshot_download: Callable[..., str] | None = None,
    load_dataset: Callable[..., Mapping[str, Any]] | None = None,
) -> Path | Mapping[str, Any]:
    """Get a corpus from the hub by the first of three routes that works.

    1. Its plain files. This is the route for `tner/*`: datasets >= 4 refuses their loading scripts, and their numbers
       mean nothing without the repository's label.json.
    2. `datasets.load_dataset`.
    3. The hub's own Parquet conversion of a dataset that has a script.

    Args:
        name: the dataset's id, "owner/name".
        patterns: the files of a corpus, relative to the repository.
        is_corpus: whether a downloaded folder is a corpus.
        snapshot_download: huggingface_hub's function, or a stand-in.
        load_dataset: datasets' function, or a stand-in.

    Returns:
        The folder of route 1, or the splits of routes 2 and 3 (a `datasets.DatasetDict`).

    Raises:
        ValueError: no route worked; the message has each one's answer and says what to do without network.
    """
    import datasets
    import huggingface_hub

    snapshot_download = snapshot_download or huggingface_hub.snapshot_download
    load_dataset = load_dataset or datasets.load_dataset
    failures: list[str] = []
    unreachable = False

    def attempt(route: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:  # a foreign border: httpx, hub and datasets errors share no other base class
            nonlocal unreachable
            unreachable = isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError)
            reason = str(error).strip().split("\n")[0]
            failures.append(f"{route}: {type(error).__name__}: {reason}")
            return None

    folder = attempt("files", lambda: snapshot_download(name, repo_type="dataset", allow_patterns=list(patterns)))
    if folder is not None:
        if is_corpus(Path(folder)):
            return Path(folder)
        failures.append("files: no train file in a known layout")
    loaded = None
    if not unreachable or huggingface_hub.constants.HF_HUB_OFFLINE:  # each route would retry a dead network for 25 s
        loaded = attempt("datasets", lambda: load_dataset(name))
        if loaded is None:
            loaded = attempt("parquet branch", lambda: load_dataset(name, revision="refs/convert/parquet"))
    if loaded is None:
        raise ValueError(
            f"{name!r} is not a local file or folder, and the hub did not provide it ({'; '.join(failures)}). "
            "Without network, give a local folder that holds train.json, valid.json, test.json and label.json"
        )
    return loaded
