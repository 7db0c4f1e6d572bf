"""A tokenizer that reads words right without lorakit: what an export ships."""

import copy
import json
from typing import Any

from torch import nn

from lorakit.data.subwords import misread, word_prefix
from lorakit.training.evaluation import window_of


def portable_tokenizer(model: nn.Module, tokenizer: Any) -> Any:
    """A copy that takes pre-split words as they are in running text, and knows the model's window.

    Some byte-level tokenizers, such as ModernBERT's, add no space before a word, which lorakit does for them. Their
    copy does it itself.

    Raises:
        ValueError: it cannot be made to.
    """
    shipped = copy.deepcopy(tokenizer)
    shipped.model_max_length = window_of(model, tokenizer)
    if not word_prefix(tokenizer):
        return shipped
    from tokenizers import Tokenizer

    record = json.loads(shipped.backend_tokenizer.to_str())
    parts = record["pre_tokenizer"] or {}
    for part in parts.get("pretokenizers", [parts]):
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = True
    shipped._tokenizer = Tokenizer.from_str(json.dumps(record))
    if misread(shipped, "", tokenizer):
        raise ValueError(
            f"{type(tokenizer).__name__} reads words only with a space before each, and cannot be changed to add it;"
            " use lorakit export --to spacy, which reads them through lorakit"
        )
    return shipped
