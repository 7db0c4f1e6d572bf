"""Adapters on disk as a user has them: ours, as PEFT would have written them, changed, and for another task."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from lorakit.adapters.files import CONFIG
from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.lora import apply_lora
from lorakit.training.models import load_tagger
from tests.support.lora_models import as_peft_would_write, labelled_roberta, trained_roberta
from tests.support.tiny import LABELS


def adapter(folder: Path, model: nn.Module | None = None) -> Path:
    return save_adapter(model or trained_roberta(), folder / "adapter")


def foreign(folder: Path, change: dict | None = None, model: nn.Module | None = None) -> Path:
    """An adapter as PEFT would have written it, with a changed configuration; None leaves a key out."""
    as_peft_would_write(found := adapter(folder, model))
    config = json.loads((found / CONFIG).read_text()) | (change or {})
    (found / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return found


def load(folder: Path, base: nn.Module | None = None, **options: object) -> nn.Module:
    return load_adapter(base or labelled_roberta(), folder, **options)


def diverged(model: nn.Module, part: str = "lora_B") -> nn.Module:
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if part in name)[0] = torch.nan
    return model


def sentence_classifier() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(vocab_size=100, **sizes))


def word_classifier() -> nn.Module:
    """The same encoder, with a head of the same name and shape."""
    from transformers import BertForTokenClassification

    return BertForTokenClassification(sentence_classifier().config)


def for_another_task(folder: Path, base: Callable[[], nn.Module] | None = None, **options: object) -> None:
    """An adapter that was trained to classify sentences, for a tagger by default."""
    found = foreign(folder, model=apply_lora(sentence_classifier(), r=2, target_modules=["query"]))
    if base is None:
        load_tagger(str(found), labels=LABELS)
    else:
        load(found, base(), **options)
