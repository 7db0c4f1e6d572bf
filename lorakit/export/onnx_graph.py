"""Export as an ONNX graph with its tokenizer and labels, proven in onnxruntime; optionally also in int8."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorakit._counts import counted
from lorakit.data.tags import Span
from lorakit.export.card import Origin, export_card
from lorakit.export.proof import Reference, entities_by_words, prove_by_words
from lorakit.export.tokenizer import portable_tokenizer
from lorakit.export.words import LONGER, TO_TAGS, Logits, read_by_words, write_transitions
from lorakit.training.evaluation import label_names

GRAPH, INT8 = "model.onnx", "model.int8.onnx"
MOST_INLINE_BYTES = 2**31 - 2**20  # protobuf's limit for one file; larger weights go to a file beside it
USAGE = """
import onnxruntime
from transformers import AutoConfig, AutoTokenizer

labels, tokenizer = AutoConfig.from_pretrained(".").id2label, AutoTokenizer.from_pretrained(".")
session = onnxruntime.InferenceSession("model.onnx")
words = ["The", "IL-2", "gene", "(", "IL2", ")", "."]
batch = tokenizer([words], is_split_into_words=True, return_tensors="np")
logits = session.run(["logits"], {name: batch[name] for name in ("input_ids", "attention_mask")})[0]
ids = batch.word_ids(0)
rows = logits[0, [ids.index(i) for i in range(len(words))]]  # a word's first subword counts
"""


class _LogitsOnly(nn.Module):
    """What the graph computes: (sentences, tokens) ids and mask to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]


def write_onnx(
    model: nn.Module, tokenizer: Any, reference: Reference, folder: Path, origin: Origin, int8: bool = False
) -> list[str]:
    """Write a merged model as ONNX into an empty folder and prove it; see `write_hf` for the arguments.

    Args:
        int8: also write the graph with int8 weights, and say what that costs in F1 instead of proving it equal.

    Returns:
        Sentences about the proof.

    Raises:
        ValueError: an operator of the model has no ONNX form.
        NotProven: with the first difference.
    """
    shipped = portable_tokenizer(model, tokenizer)
    _write_graph(model, folder / GRAPH)
    model.config.save_pretrained(folder)
    shipped.save_pretrained(folder)
    labels = label_names(model)
    write_transitions(reference.decode, labels, folder)
    found, proof = prove_by_words(reference, shipped, labels, _session(folder / GRAPH), "onnxruntime")
    if int8:
        proof.append(_write_int8(folder, shipped, labels, reference, found[reference.decode]))
    longer = LONGER.format(window=shipped.model_max_length)
    card = export_card("onnx", labels, origin, USAGE + TO_TAGS[reference.decode], proof, longer)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return proof


def _write_graph(model: nn.Module, path: Path) -> None:
    ids = torch.full((2, 9), 5)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    wrapped = _LogitsOnly(model).eval()
    try:
        with _silent():
            program = torch.onnx.export(
                wrapped,
                (ids, mask),
                dynamo=True,
                dynamic_shapes={"input_ids": any_size, "attention_mask": any_size},
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # torch.onnx and torch.export raise many kinds, and keep the reason in the cause
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise ValueError(
            f"torch.onnx cannot export {type(model).__name__}: {reason}; use lorakit export --to hf or --to spacy"
        ) from error
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    program.save(path, external_data=size > MOST_INLINE_BYTES)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """While active, nothing is logged or printed: the exporters warn about torchvision, and print whole graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _session(path: Path) -> Logits:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def logits(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]

    return logits


def _write_int8(folder: Path, tokenizer: Any, labels: list[str], reference: Reference, exact: list[list[Span]]) -> str:
    """Write the int8 graph; returns a sentence that says what it costs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _silent():
        quantize_dynamic(str(folder / GRAPH), str(folder / INT8), weight_type=QuantType.QInt8)
    rows, decode = read_by_words(tokenizer, _session(folder / INT8), reference.sentences), reference.decode
    found = entities_by_words(rows, labels, decode)
    same = sum(len(set(one) & set(other)) for one, other in zip(found, exact, strict=True))
    before, after = reference.f1_of(exact), reference.f1_of(found)
    if before is None or after is None:
        cost = "what that costs in F1 is unknown, because the corpus marks no entity, or other types than the model's"
    else:
        cost = f"F1 on these sentences {before:.4f} in float32, {after:.4f} in int8 ({after - before:+.4f})"
    entities = counted(reference.count(decode), "entity", "entities")
    return f"{INT8} ({decode}): equal to float32 in {same:,} of {entities}; {cost}."
