"""Tiny RoBERTas for the LoRA tests, and what the tests do to them: train, save, compare."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import RobertaConfig, RobertaForTokenClassification

from lorakit.adapters.files import OWN, TENSORS
from lorakit.lora import apply_lora

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])  # (2 texts, 5 tokens)
LABELS = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
LABEL_NAMES = ["O", *(f"{kind}-{name}" for name in ("DNA", "RNA", "protein", "line", "type") for kind in "BI")]
QUERY_VALUE = {"r": 8, "lora_alpha": 16, "target_modules": None}  # small adapters, whatever the defaults are
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def tiny_roberta(**changes: object) -> RobertaForTokenClassification:
    """Two layers of width 32, 11 labels, in eval mode; the same weights every time."""
    options = {
        "vocab_size": 100,
        "max_position_embeddings": 40,
        "type_vocab_size": 1,
        "num_labels": 11,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return RobertaForTokenClassification(RobertaConfig(**options | changes)).eval()


def labelled_roberta(labels: list[str] = LABEL_NAMES) -> nn.Module:
    """A tiny RoBERTa whose configuration names its labels."""
    return tiny_roberta(id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})


def logits(model: nn.Module) -> torch.Tensor:
    return model(IDS).logits


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    """Move every trained parameter, in place of training."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def trained_roberta(**options: object) -> nn.Module:
    """A labelled RoBERTa, adapted as QUERY_VALUE and the options say, whose trained parameters have moved."""
    model = apply_lora(labelled_roberta(), **QUERY_VALUE | options)
    perturb(model)
    return model


def two_adapters(first: dict, second: dict) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A model with trained adapters "default" and "second" (active), and the output of each; see QUERY_VALUE."""
    model = apply_lora(tiny_roberta(), **QUERY_VALUE | first)
    perturb(model)
    one = logits(model)
    apply_lora(model, **QUERY_VALUE | second, adapter_name="second")
    perturb(model)
    return model, one, logits(model)


def as_peft_would_write(folder: Path) -> None:
    """Remove from a saved adapter what only lorakit writes."""
    (folder / OWN).unlink()
    save_file(load_file(folder / TENSORS), folder / TENSORS, metadata={"format": "pt"})
