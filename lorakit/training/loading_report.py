"""Which weights may be new or left over when a checkpoint is loaded into a token classifier.

transformers prints a report of them and continues: an encoder layer that config.json does not count is dropped, and one
that the file lacks is random. Here only the head may be new, and only another task's head may be left over.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorakit.adapters.unused import unused_parameters

# The first part of the names of other tasks' heads, in transformers' classes. `classifier` and `score` are heads of
# other shapes than a token classifier's, `decoder` is ModernBERT's output layer or the decoder of T5.
TASK_HEADS = frozenset(
    """classification_head classifier cls contact_head decoder dense discriminator_predictions embed_out
    entity_predictions generator_lm_head generator_predictions head lm_head lm_loss lm_predictions logits_proj
    mask_predictions pooler pre_classifier pred_layer predictions projection_head qa_classifier qa_outputs score
    sequence_summary seq_relationship sop_classifier summary vocab_layer_norm vocab_projector vocab_transform""".split()
)
OLD_BUFFERS = frozenset({"masked_bias", "position_ids", "token_type_ids"})  # earlier transformers saved them
LORA = (".lora_A", ".lora_B", ".lora_magnitude", ".lora_rows")  # ends of the names that apply_lora adds
SHOWN = 4  # names in a message


@dataclass(frozen=True)
class LoadingReport:
    """What `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)` found.

    Attributes:
        missing: names in the model that the checkpoint does not have, and are new.
        unexpected: names in the checkpoint that the model does not have.
        mismatched: names whose shape in the checkpoint is not the model's, and are new; with both shapes.
    """

    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @classmethod
    def of(cls, info: dict[str, Any]) -> "LoadingReport":
        """Read the dictionary that transformers returns."""
        shapes = {name: (tuple(theirs), tuple(ours)) for name, theirs, ours in info["mismatched_keys"]}
        return cls(frozenset(info["missing_keys"]), frozenset(info["unexpected_keys"]), shapes)


def check_report(model: nn.Module, report: LoadingReport) -> None:
    """Refuse a checkpoint that does not fill the encoder, or has weights for which the model has no place.

    Args:
        model: a transformers token classifier, just loaded.
        report: of its loading.

    Raises:
        ValueError: with the weights' names and the fix.
    """
    tensors = model.base_model.state_dict().items()
    inside = {f"{model.base_model_prefix}.{name}" for name, t in tensors if t.is_floating_point()}  # not position ids
    lost = report.missing & inside
    if lost and (lost := lost - unused_parameters(model)):  # such as a pooler that no tagger runs
        raise ValueError(
            f"the checkpoint lacks weights of the encoder, which would be random: {_listing(lost)}; config.json"
            " describes a larger model or another class, or the file is damaged: fetch or save it again"
        )
    for name, (theirs, ours) in sorted(report.mismatched.items()):
        if name in inside:
            raise ValueError(
                f"{name} has the shape {theirs} in the checkpoint and {ours} by config.json; correct config.json, or"
                " fetch or save the checkpoint again"
            )
    if left := sorted(name for name in report.unexpected if not _may_be_left(name, model)):
        if any(name.endswith(LORA) for name in left):
            raise ValueError(
                "the checkpoint holds LoRA's tensors beside the base's, but no adapter: it is the state_dict of an"
                " adapted model. Build the model with the same apply_lora as in training, then"
                " model.load_state_dict(safetensors.torch.load_file(path)) and save_adapter(model, folder)"
            )
        raise ValueError(
            f"{type(model).__name__} has no place for these weights of the checkpoint: {_listing(left)}; correct"
            " config.json if it describes another model; to do without them, load the model with transformers and save"
            " it again with save_pretrained"
        )


def _may_be_left(name: str, model: nn.Module) -> bool:
    """Whether a weight of the checkpoint belongs to another task's head or to a buffer that is computed anyway."""
    first = name.removeprefix(f"{model.base_model_prefix}.").partition(".")[0]
    if first in TASK_HEADS and first not in dict(model.base_model.named_children()):
        return True
    if name.rpartition(".")[2] in OLD_BUFFERS:
        return True
    buffers = {buffer for buffer, _ in model.named_buffers()}
    return name in buffers or f"{model.base_model_prefix}.{name}" in buffers


def _listing(names: Collection[str]) -> str:
    first, rest = sorted(names)[:SHOWN], len(names) - SHOWN
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")
