"""What the files of somebody else's model may not do: bring code, or lead to a pickle, which can run any code."""

import json
import os
import re
from pathlib import Path

from lorakit._files import check_regular, read_bounded

NO_REMOTE_CODE = {"trust_remote_code": False}
"""Goes to every `from_pretrained`: without it transformers asks on standard input, and takes "y" for an answer."""
INDEX = "model.safetensors.index.json"
MOST_CONFIG_BYTES, MOST_INDEX_BYTES = 1 << 24, 1 << 26


def check_files(name: str) -> None:
    """Refuse a model whose files are not what they should be, before any of them is opened.

    Args:
        name: a folder or hub id; an id's index is fetched, as loading would do next.

    Raises:
        ValueError: a file is no regular file or too large, or an index names weights that are not safetensors.
        OSError: a file cannot be read.
    """
    folder = Path(name)
    if folder.is_dir():
        for path in folder.glob("*.json"):
            check_regular(path, MOST_INDEX_BYTES if path.name == INDEX else None)
        if (folder / "config.json").exists():
            check_regular(folder / "config.json", MOST_CONFIG_BYTES)
        for path in folder.glob("*.safetensors"):
            check_regular(path)
            if not os.access(path, os.R_OK):  # safetensors would say that there is no such file
                raise PermissionError(f"{path} may not be read: give yourself the right with chmod u+r")
        index = folder / INDEX
    else:
        from transformers.utils import cached_file

        missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        found = cached_file(name, INDEX, **missing)
        index = Path(found) if found else None
    if index is not None and index.is_file():
        check_index(index)


def check_index(path: Path) -> None:
    """Refuse an index of weights that names anything but safetensors files of its own folder.

    Raises:
        ValueError: it does, or it is damaged.
    """
    try:
        names = set(json.loads(read_bounded(path, MOST_INDEX_BYTES))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged ({error!r})") from None
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors") or name != os.path.basename(name):
            raise ValueError(
                f"{path.name} names {name!r} for weights, and only safetensors files beside it are read: others may be"
                " pickles, which can run any code; save the model again with safetensors"
            )


def explained(error: Exception) -> str:
    """What a loader's error says, in one line; in our words where transformers' own would lead nowhere."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in reason or "custom code" in reason:
        return (
            "it needs code that comes with it (auto_map in its configuration), and lorakit never runs code of a model:"
            " load and save it with transformers as an architecture that transformers has, or choose another base"
        )
    if "couldn't connect to" in reason:
        return (
            "there is no folder of that name here, the hub cannot be reached, and its cache does not have it; check the"
            " spelling and the folder you are in, or connect to the network"
        )
    if re.search(r"file named model\S*\.safetensors", reason):
        return (
            "it has no model.safetensors: fetch it; a pytorch_model.bin is a pickle, which can run any code, and is"
            " never opened here, so where you trust it write safetensors.torch.save_file({k: v.clone() for k, v in"
            " torch.load('pytorch_model.bin', weights_only=True).items()}, 'model.safetensors', {'format': 'pt'})"
        )
    if found := re.search(r"Unrecognized configuration class <class '[\w.]*?(\w+)'>", reason):
        return (
            f"transformers has no token classifier for this architecture ({found[1]}); choose a base of one that has,"
            " such as BERT, RoBERTa, DeBERTa, ModernBERT or those in docs/architectures.md"
        )
    return reason
