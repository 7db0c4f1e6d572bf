"""Fine-tuned taggers on disk: a model trained in full is a folder as transformers has it, a LoRA one an adapter."""

import os
from pathlib import Path
from typing import Any

from torch import nn

from lorakit._files import atomic_folder
from lorakit.adapters.storage import CONFIG, OWN, base_and_labels, load_adapter
from lorakit.nn.weights import whole
from lorakit.training.models import load_token_classifier


def save_model(model: nn.Module, tokenizer: Any, folder: str | os.PathLike[str]) -> Path:
    """Write a model and its tokenizer for `from_pretrained`; the folder appears whole, in place of an earlier one.

    Args:
        model: one that is sharded is gathered: every rank has to call, and rank 0 alone writes.

    Raises:
        OSError: the disk does not take it; an earlier folder is as it was.
    """
    folder = Path(folder)
    state = {name: whole(tensor).cpu() for name, tensor in model.state_dict().items()}
    sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    if sharded and int(os.environ.get("RANK", 0)):
        return folder
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, state_dict=state)
        tokenizer.save_pretrained(temporary)
    return folder


def load_tagger(adapter: str | None = None, model: str | None = None) -> tuple[nn.Module, Any]:
    """Load what was fine-tuned: the adapter on its base, or the model trained in full; and the tokenizer.

    Args:
        adapter: a folder or hub id; its adapter_config.json names the base, its lorakit.json the labels.
        model: with an adapter, where its base is to be found instead; alone, a folder or hub id with a trained head.

    Raises:
        ValueError, OSError: it cannot be loaded; the message says why and what to do.
    """
    if adapter is None:
        if model is None:
            raise ValueError("give --adapter FOLDER_OR_ID, or --model FOLDER_OR_ID for a model fine-tuned in full")
        if (Path(model) / CONFIG).is_file():
            raise ValueError(f"--model {model} is a LoRA adapter: give it as --adapter {model}")
        return load_token_classifier(model, labels=None)
    base, labels = base_and_labels(_adapter_folder(adapter))
    if labels is None:
        raise ValueError(
            f"the adapter {adapter} does not say which labels its head has: {OWN} is missing, or holds none because no"
            " head was trained; save it with lorakit.save_adapter, or load it in code with lorakit.load_adapter"
        )
    if model is None and base is None:
        raise ValueError(f"{adapter}: {CONFIG} does not name the base (base_model_name_or_path); give it with --model")
    try:
        loaded, tokenizer = load_token_classifier(model or base, labels)
    except (ValueError, OSError) as error:
        if model is not None:
            raise
        raise ValueError(f"{error}; {CONFIG} names this base: give it with --model if it is elsewhere") from error
    return load_adapter(loaded, adapter), tokenizer


def _adapter_folder(adapter: str) -> str:
    """The same; an error that knows better where it is a run's folder."""
    folder = Path(adapter)
    if folder.is_dir() and not (folder / CONFIG).is_file():
        for inside in (folder / "adapter", folder / "lora" / "adapter"):
            if (inside / CONFIG).is_file():
                raise ValueError(f"no adapter in {folder}: {CONFIG} is not there; did you mean {inside}?")
    return adapter
