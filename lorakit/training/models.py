"""Load a pretrained base with a token-classification head for given labels."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorakit.data.tokenization import check_tokenizer


def load_token_classifier(
    source: str | os.PathLike[str],
    labels: Sequence[str] | None,
    seed: int = 0,
    dropout: float | None = None,
    attn_implementation: str = "sdpa",
) -> tuple[nn.Module, Any]:
    """Load a base model in fp32 with a new head, or a fine-tuned one with its own, and its tokenizer.

    Args:
        source: a folder, or the id of a model on the hub; only an id may use the network.
        labels: the tag of each class of a new head; None keeps the head and the labels that the checkpoint has.
        seed: the new head's weights depend on this alone; the global generators are left as they were.
        dropout: replaces the base's hidden and attention dropout; None keeps them.
        attn_implementation: "sdpa" or "eager", which packing supports.

    Returns:
        The model in evaluation mode, as `from_pretrained` leaves it, and a tokenizer that takes pre-split words.

    Raises:
        FileNotFoundError: `source` looks like a folder and there is none.
        ValueError: what is there cannot be loaded; the message says why.
    """
    name = os.fspath(source)
    looks_local = name.startswith((".", "/", "~")) or os.sep != "/" and os.sep in name or name.count("/") > 1
    if not Path(name).exists() and looks_local:
        raise FileNotFoundError(f"there is no model folder {name!r}; give a folder with config.json, or a hub id")
    if Path(name).is_file():
        raise ValueError(f"{name!r} is a file; give the model's folder, with config.json and model.safetensors")
    import transformers  # heavy: only when a model is loaded

    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # the new head is meant to be missing from the checkpoint
    logging.disable_progress_bar()
    options: dict[str, Any] = {}
    if labels is not None:
        options |= {"num_labels": len(labels), "id2label": dict(enumerate(labels))}
        options |= {"label2id": {label: number for number, label in enumerate(labels)}}
    if dropout is not None:
        options |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    try:
        tokenizer = _load_tokenizer(transformers, name)
        with torch.random.fork_rng(devices=[]):
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
    except Exception as error:  # whatever the loader meets in a broken folder or without a network
        reason = " ".join(str(error).split()) or type(error).__name__
        where = "the folder" if Path(name).exists() else "the hub id"
        raise ValueError(f"cannot load a model from {where} {name!r}: {reason[:300]}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    return model, tokenizer


def _load_tokenizer(transformers: Any, name: str) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    try:
        check_tokenizer(tokenizer)
    except ValueError:  # a byte-level tokenizer as roberta-base ships it
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, add_prefix_space=True)
        check_tokenizer(tokenizer)
    return tokenizer
