"""How a model takes its batches, found out by running it: packing is used only after a proof that it changes nothing.

A packed row holds several sentences. Attention is kept inside each by a block-diagonal mask, and position ids restart
with each, so the output must equal that of every sentence alone. Whether a model honours both cannot be read from its
configuration, so it is asked: three short sentences go through it packed and one by one.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from lorakit.data.packing import ROW_LENGTH, Layout, collate, with_few_shapes
from lorakit.data.tokenization import IGNORE, Encoded
from lorakit.nn.attention import faster_attention
from lorakit.training.dry_run import keep_modes

LARGEST_ERROR = 1e-2  # relative to the output; rounding stays below in every dtype, mixed sentences are far above
PART_ELEMENTS = 2**18  # elements of hidden state per part and thread; in smaller parts the overhead of calls shows
UNIT = 16  # a row's width is a multiple of this many tokens where few shapes are wanted
COMPILED_UNIT = 32  # the same for torch.compile, which takes long for each shape


def layout_for(model: nn.Module, packing: bool = True, precision: str = "auto") -> Layout:
    """Find out how a model takes its batches, and prove it: packed output must equal the one-by-one output.

    Where attention is lorakit's own, in float32 on a CPU, rows are long and batches are computed in parts: there the
    length of a row costs nothing, and both few shapes and small parts save memory. Elsewhere rows are short, and a
    batch goes through the model at once.

    Args:
        model: a transformers model on the device it will run on; its modes and random numbers stay as they are.
        packing: False gives each sentence a row of its own, padded to the longest.
        precision: as in TrainConfig; only "auto" and "fp32" can use lorakit's own attention.

    Returns:
        The layout to pass to `TokenTable` and `plan_batch`.

    Raises:
        ValueError: packing is asked for and the model's attention would mix the sentences of a row.
    """
    config = model.config
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    if not packing:
        return Layout(first_position(model), pad, packing=False)
    attention = config._attn_implementation
    fix = "load the model with attn_implementation='sdpa', or train with packing off (TrainConfig(packing=False))"
    if attention not in ("sdpa", "eager"):
        raise ValueError(f"attention {attention!r} cannot be packed; sdpa and eager can: {fix}")
    if getattr(config, "sliding_window", None) or getattr(config, "local_attention", None):
        raise ValueError(f"{config.model_type} attends in a sliding window, which a packed mask would replace: {fix}")
    layout = Layout(first_position(model), pad, additive_mask=model.dtype if attention == "eager" else None)
    try:
        with faster_attention(model) as own:
            if own is not None:
                own.used = False  # during training it is shared, and another model may have set this
            error = _packing_error(model, layout)
    except (TypeError, IndexError, RuntimeError, ValueError) as problem:
        raise ValueError(f"{type(model).__name__} does not take a packed batch ({problem}): {fix}") from problem
    if not error < LARGEST_ERROR:
        raise ValueError(
            f"{type(model).__name__} with {attention!r} attention mixes packed sentences (outputs differ by {error:.1g}"
            f" of their size): {fix}"
        )
    in_blocks = own is not None and own.used and precision in ("auto", "fp32")
    return in_long_rows(layout, getattr(config, "hidden_size", None)) if in_blocks else layout


def in_long_rows(layout: Layout, hidden_size: int | None) -> Layout:
    """The layout with long rows, and with parts large enough to keep this process's threads busy.

    Args:
        hidden_size: the model's; None, where its configuration has none, means no parts.
    """
    part_length = PART_ELEMENTS * torch.get_num_threads() // hidden_size if hidden_size else None
    return replace(layout, row_length=ROW_LENGTH, unit=UNIT, part_length=part_length)


def training_layout(
    layout: Layout, encoded: Encoded, batch_size: int, engine: str = "eager", whole: bool = False
) -> Layout:
    """The layout of batches to train on, with few shapes where something is built for each shape.

    Args:
        layout: the model's, from `layout_for`.
        encoded: the training corpus, whose lengths say how many rows and parts fit.
        batch_size: sentences per batch.
        engine: as in TrainConfig; a compiled or recorded batch is not computed in parts.
        whole: never compute a batch in parts, because FSDP would gather the weights again for each.
    """
    if engine != "eager" or whole:
        layout = replace(layout, part_length=None)
    unit = {"eager": layout.unit, "compile": COMPILED_UNIT, "cuda_graphs": UNIT}[engine]
    few = engine != "eager" or layout.row_length is not None
    return with_few_shapes(layout, encoded, batch_size, unit) if few else layout


def first_position(model: nn.Module) -> int:
    """The position id of a sentence's first token: padding_idx + 1 in RoBERTa's family, otherwise 0."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


@torch.no_grad()
def _packing_error(model: nn.Module, layout: Layout) -> float:
    """The largest difference between packed sentences and each alone, relative to the output's size."""
    device = next(model.parameters()).device
    vocabulary = model.config.vocab_size
    ids = np.arange(24) % max(vocabulary - 10, 1) + min(10, vocabulary - 1)
    offsets = np.array([0, 5, 12, 24])
    nothing = np.full(24, -1)
    probe = Encoded(ids, np.full(24, IGNORE), nothing, offsets, np.array([1, 1, 1]))
    with keep_modes(model):
        model.eval()
        packed = collate(probe, [0, 1, 2], Layout(layout.first_position, layout.pad_token_id), device=device)
        together = model(**layout.inputs(packed))[0]
        worst = 0.0
        for number in range(3):
            mine = (packed.segments == number).nonzero(as_tuple=True)
            alone = model(input_ids=packed.input_ids[mine][None])[0][0]
            worst = max(worst, float((together[mine] - alone).abs().max() / alone.abs().max().clamp_min(1e-9)))
        return worst
