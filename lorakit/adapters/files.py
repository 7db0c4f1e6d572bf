"""An adapter's folder: written atomically, read with its digests checked, or fetched by hub id."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorakit._files import atomic_folder, check_regular, is_utf8, read_bounded

CONFIG, TENSORS, OWN, CARD = "adapter_config.json", "adapter_model.safetensors", "lorakit.json", "README.md"
CALIBRATION = "calibration.json"  # what `lorakit calibrate` writes beside the weights
SCHEMA = 1
MOST_JSON_BYTES = 1 << 24  # of a JSON file of an adapter


def find_folder(source: str | Path) -> Path:
    """The folder with an adapter's files: `source` itself, or the hub's cache if it is a hub id."""
    folder = Path(source)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"no adapter in {folder}: {CONFIG} is not there")
        if not is_utf8(folder):
            raise ValueError(f"{folder}: the path is not UTF-8, and safetensors opens no file there; move the adapter")
        return folder
    hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not folder.parent.is_dir()
    if not hub_id:
        raise FileNotFoundError(f"no adapter folder {folder}; give the folder that holds {CONFIG}, or a hub id")
    return _download(str(source))


def _download(hub_id: str) -> Path:
    """Fetch an adapter into the hub's cache: the one case that needs the network."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=[CONFIG, TENSORS, OWN, CALIBRATION]))
    except Exception as error:  # httpx's, the hub's and the cache's errors share no other base class
        reason = (" ".join(str(error).split()) or type(error).__name__)[:300]
        raise FileNotFoundError(
            f"there is no adapter folder {hub_id!r} here, and the hub did not give it ({reason}). Check the name; "
            f"without network fetch it elsewhere (hf download {hub_id}) and pass the folder"
        ) from None
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{hub_id!r} on the hub is not an adapter: it has no {CONFIG}")
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        ValueError: it is damaged.
    """
    try:
        found = json.loads(read_bounded(path, MOST_JSON_BYTES))
    except (ValueError, RecursionError) as error:  # nested too deeply
        raise ValueError(f"{path} is damaged: {error}; fetch or save the adapter again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: not an object; fetch or save the adapter again")
    return found


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], bool]:
    """Read the tensors, and whether lorakit wrote them."""
    path = folder / TENSORS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        why = "adapter_model.bin is a pickle, which can run any code: save it again with safetensors" if pickled else ""
        raise ValueError(f"{path} is missing. {why or 'Fetch or save the adapter again'}")
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            ours = "lorakit" in (file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; fetch or save the adapter again") from None
    if bad := not_finite(tensors):
        raise ValueError(
            f"{path} has values in {bad} that are not finite: its training diverged, and its predictions would be"
            " useless; train again with a lower learning rate"
        )
    return tensors, ours


def is_ours(folder: Path) -> bool:
    """Whether lorakit saved these weights; False if they cannot be read, of which loading them says why."""
    try:
        check_regular(folder / TENSORS)
        with safe_open(folder / TENSORS, framework="pt") as file:
            return "lorakit" in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor with a value that is NaN or infinite; None if there is none."""
    return next((name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()), None)


def read_own(folder: Path) -> dict[str, Any]:
    """Read lorakit's metadata and compare every file with its digest."""
    path = folder / OWN
    if not path.is_file():
        raise ValueError(
            f"{path} is missing, without which nothing says which labels and base fit; copy it too, or, if it is lost,"
            " give check_base=False, the tag of each class in order, such as labels=['O', 'B-DNA', 'I-DNA'], and"
            " decode='viterbi' if the adapter was trained with it"
        )
    own = read_json(path)
    if own.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {own.get('schema')!r}, this lorakit reads {SCHEMA}; use a newer lorakit")
    expected = own.pop("digest", None)
    if expected != digest(json.dumps(own, sort_keys=True).encode()):
        raise ValueError(f"{path} was changed after it was written; fetch or save the adapter again")
    files, labels = own.get("files"), own.get("labels")
    if not isinstance(files, dict) or not (labels is None or _are_names(labels)):
        raise ValueError(f"{path} is damaged: its files or labels are not names; fetch or save the adapter again")
    for name, expected in files.items():
        if name != Path(name).name or not (folder / name).is_file():
            raise ValueError(f"{folder / name}, which {OWN} lists, is not there; fetch or save the adapter again")
        if digest((folder / name).read_bytes()) != expected:
            raise ValueError(
                f"{folder / name} is not the file that was saved with {OWN}; fetch or save the adapter again (after an "
                f"edit on purpose, delete {OWN} and the safetensors' metadata)"
            )
    return own


def _are_names(labels: Any) -> bool:
    return isinstance(labels, list) and all(isinstance(label, str) for label in labels)


def digest(data: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def same_every_time(data: bytes) -> bytes:
    """Sort a safetensors file's header: safetensors writes the metadata in random order."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[start:]


def write_all(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write an adapter's files; a new folder appears with all of them, an existing one keeps its other files."""
    with atomic_folder(folder, keep_others=True) as temporary:
        for name, data in files.items():
            (temporary / name).write_bytes(data)
    return folder
