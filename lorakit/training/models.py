"""Token classifiers on disk: pretrained bases, models fine-tuned in full, and adapters on their base.

A model fine-tuned in full is saved as transformers does, one fine-tuned with LoRA as an adapter.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit._files import atomic_folder
from lorakit.adapters.storage import CONFIG, OWN, base_and_labels, load_adapter
from lorakit.data.tokenization import check_tokenizer
from lorakit.nn.weights import whole
from lorakit.training.distributed import is_main


def load_token_classifier(
    source: str | os.PathLike[str],
    labels: Sequence[str] | None,
    seed: int = 0,
    dropout: float | None = None,
    attn_implementation: str = "sdpa",
) -> tuple[nn.Module, Any]:
    """Load a base model in fp32 with a new head, or a fine-tuned one with its own, and its tokenizer.

    Example:
        from lorakit.training.models import load_token_classifier
        model, tokenizer = load_token_classifier("examples/mini", labels=["O", "B-DNA", "I-DNA"])
        model.config.id2label[1]  # 'B-DNA'

    Args:
        source: a folder, or the id of a model on the hub; only an id may use the network.
        labels: the tag of each class of a new head; None keeps the checkpoint's head and labels.
        seed: the new head's weights depend on this alone; the global generators are left unchanged.
        dropout: replaces the base's hidden and attention dropout, 0 to 1; None keeps them.
        attn_implementation: "sdpa" or "eager", which packing supports.

    Returns:
        The model in evaluation mode, as `from_pretrained` leaves it, and a tokenizer that takes pre-split words.

    Raises:
        FileNotFoundError: `source` looks like a folder and does not exist.
        ValueError: it cannot be loaded; the message says why.
    """
    name = _checked(source)
    import transformers  # heavy, so only when a model is loaded

    options: dict[str, Any] = {}
    if labels is not None:
        options |= {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
        options |= {"label2id": {label: number for number, label in enumerate(labels)}}
    if dropout is not None:
        options |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    try:
        with _quiet(transformers.utils.logging), torch.random.fork_rng(devices=[]):
            tokenizer = _load_tokenizer(transformers, name)
            torch.manual_seed(seed)
            model, loading = transformers.AutoModelForTokenClassification.from_pretrained(
                name,
                dtype=torch.float32,  # updates below 2^-8 would vanish in a half-precision checkpoint's own dtype
                attn_implementation=attn_implementation,
                use_safetensors=True,  # never a pickle
                output_loading_info=True,
                **options,
            )
        if labels is None and loading["missing_keys"]:
            missing = ", ".join(sorted(loading["missing_keys"])[:3])
            raise ValueError(f"it is a base without a trained head ({missing} is missing): fine-tune it first")
    except Exception as error:  # loaders raise many kinds for a broken folder or a missing network
        reason = " ".join(str(error).split()) or type(error).__name__
        where = "the folder" if Path(name).exists() else "the hub id"
        raise ValueError(f"cannot load a model from {where} {name!r}: {reason[:300]}") from error
    return model, tokenizer


def save_model(model: nn.Module, tokenizer: Any, folder: str | os.PathLike[str]) -> Path:
    """Write a model and its tokenizer for `from_pretrained`, atomically: an earlier folder is replaced at the end.

    Args:
        model: a transformers model; if it is sharded, every rank has to call this, and the main rank writes.
        tokenizer: the model's.
        folder: where to write.

    Raises:
        OSError: the disk is full or not writable; an earlier folder is unchanged.
    """
    folder = Path(folder)
    state = {name: whole(tensor).cpu() for name, tensor in model.state_dict().items()}
    sharded = any(hasattr(parameter, "full_tensor") for parameter in model.parameters())
    if sharded and not is_main():
        return folder
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, state_dict=state)
        tokenizer.save_pretrained(temporary)
    return folder


def load_tagger(adapter: str | None = None, model: str | None = None) -> tuple[nn.Module, Any]:
    """Load a fine-tuned tagger and its tokenizer: an adapter on its base, or a model trained in full.

    Args:
        adapter: a folder or hub id; its adapter_config.json names the base, its lorakit.json the labels.
        model: with an adapter, a folder or hub id to load the base from instead; alone, one with a trained head.

    Raises:
        ValueError: it cannot be loaded; the message says why and what to do.
        OSError: a file cannot be read.
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
            f"the adapter {adapter} does not say which labels its head has: {OWN} is missing, or has no labels because"
            " no head was trained; save it with lorakit.save_adapter, or load it in code with lorakit.load_adapter"
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


def _checked(source: str | os.PathLike[str]) -> str:
    """The name to load from; raises where it looks like a folder and is not one."""
    name = os.fspath(source)
    looks_local = name.startswith((".", "/", "~")) or os.sep != "/" and os.sep in name or name.count("/") > 1
    if not Path(name).exists() and looks_local:
        raise FileNotFoundError(f"there is no model folder {name!r}; give a folder with config.json, or a hub id")
    if Path(name).is_file():
        raise ValueError(f"{name!r} is a file; give the model's folder, with config.json and model.safetensors")
    return name


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """While active, transformers shows no warnings (a new head is missing from the checkpoint, as expected) or bars."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load_tokenizer(transformers: Any, name: str) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    try:
        check_tokenizer(tokenizer)
    except ValueError:  # a byte-level tokenizer as roberta-base ships it
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, add_prefix_space=True)
        check_tokenizer(tokenizer)
    return tokenizer


def _adapter_folder(adapter: str) -> str:
    """Return it unchanged; raise where it is a run's folder and the adapter is inside."""
    folder = Path(adapter)
    if folder.is_dir() and not (folder / CONFIG).is_file():
        for inside in (folder / "adapter", folder / "lora" / "adapter"):
            if (inside / CONFIG).is_file():
                raise ValueError(f"no adapter in {folder}: {CONFIG} is not there; did you mean {inside}?")
    return adapter
