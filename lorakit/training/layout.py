"""How a model takes its batches, found out by running it: packing is used only after a proof that it changes nothing.

A packed row holds several sentences. Attention is kept inside each by a block-diagonal mask, and position ids restart
with each, so the output must equal that of every sentence alone. Whether a model honours both cannot be read from its
configuration, so it is asked: four sentences go through it in two packed rows and one by one.

Plain rows are proven in the same way. Where padding changes the output, only sentences of equal length share a batch.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from lorakit._counts import counted
from lorakit.data.packing import ROW_LENGTH, Layout, TokenTable, plan_batch, with_few_shapes
from lorakit.data.tokenization import IGNORE, Encoded
from lorakit.nn.attention import faster_attention
from lorakit.nn.disentangled import faster_disentangled
from lorakit.training.architectures import block_masks, longest_reach, mask_candidates, mixing_reason
from lorakit.training.config import packing_choice
from lorakit.training.distributed import is_main
from lorakit.training.dry_run import dry_run
from lorakit.training.precision import Autocast, autocast_for

LARGEST_ERROR = 1e-4  # relative to the output; rounding in float32 stays far below, mixed sentences are far above
ROUNDING = 8  # the same for lower types, in units of their machine epsilon
PROBED = (5, 7, 8, 12)  # tokens of the sentences of a proof; packed, the last ones come second in a row
LONGEST_PROOF = 1024  # tokens; a wider window is not proven
PART_ELEMENTS = 2**18  # elements of hidden state per part and thread; in smaller parts the overhead of calls shows
UNIT = 16  # a row's width is a multiple of this many tokens where few shapes are wanted
COMPILED_UNIT = 32  # the same for torch.compile, which takes long for each shape

FAILURES = (TypeError, IndexError, RuntimeError, ValueError, AssertionError, AttributeError, KeyError)  # of a forward
logger = logging.getLogger(__name__)
_told: WeakSet[nn.Module] = WeakSet()  # models whose fallback was reported
_proven: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Layout]] = WeakKeyDictionary()  # and as what


def layout_for(model: nn.Module, packing: bool | str = "auto", precision: str = "auto") -> Layout:
    """Find out how a model takes its batches, and prove it: the output must equal that of every sentence alone.

    Where attention is lorakit's own, in float32 or bfloat16 on a CPU, rows are long and batches are computed in parts:
    there the length of a row costs nothing, and both few shapes and small parts save memory. Elsewhere rows are short,
    and a batch goes through the model at once.

    Args:
        model: a transformers model on the device it will run on; its modes, flags, buffers and random numbers stay as
            they are.
        packing: "on" or True packs, and refuses a model that cannot be packed; "off" or False gives each sentence a row
            of its own, padded to the longest; "auto" packs where that is proven, and says so where it is not.
        precision: as in TrainConfig; the proof runs under its autocast.

    Returns:
        The layout to pass to `TokenTable` and `plan_batch`.

    Raises:
        ValueError: packing is "on" and would mix the sentences of a row; or even plain rows change the output.
    """
    packing = packing_choice(packing)
    autocast, _ = autocast_for(precision, _device(model))
    reason = None
    if packing != "off":
        found = _packed_layout(model, autocast)
        if isinstance(found, Layout):
            return found
        reason = found
        if packing == "on":
            fix = "train in plain rows with packing='off'"
            raise ValueError(f"{type(model).__name__} cannot be packed, because {reason}: {fix}")
    return plain_layout(model, precision, reason)


def remembered_layout(model: nn.Module, packing: bool | str = "auto", precision: str = "auto") -> Layout:
    """`layout_for`, whose proof is not repeated for a model that is as it was at the last one.

    Of two calls with one short text each, the second would otherwise spend most of its time on the proof. Weights may
    differ: they change what a model computes, not how it takes its batches.
    """
    config = model.config
    settings = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    parts = [(id(module), type(module), len(module._forward_pre_hooks)) for module in model.modules()]
    state = (
        *(packing_choice(packing), precision, _device(model), next(model.parameters()).dtype),
        *(torch.get_num_threads(), getattr(config, "_attn_implementation", None), repr(settings), parts),
    )
    before, layout = _proven.get(model, (None, None))
    if layout is None or before != state:
        layout = layout_for(model, packing, precision)
        _proven[model] = state, layout
    return layout


def plain_layout(model: nn.Module, precision: str = "auto", reason: str | None = None) -> Layout:
    """Find out how a model takes plain rows, and say once per model why they are used.

    Args:
        model, precision: as for `layout_for`.
        reason: why rows are not packed although they may be; None if they were not to be.

    Raises:
        ValueError: even plain rows change the output.
    """
    layout = _plain_layout(model, autocast_for(precision, _device(model))[0])
    if reason and is_main() and model not in _told:
        _told.add(model)
        rows = "plain rows of equal length" if layout.by_length else "plain rows"
        logger.warning("%s is used with %s, not packed, because %s", type(model).__name__, rows, reason)
    return replace(layout, reason=reason)


@contextmanager
def packed_attention(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """While active, the model takes the masks of its layout, and attention is computed in blocks where it can be.

    Yields:
        A function that says whether any attention was computed in blocks so far.
    """
    with block_masks(model), faster_attention(model) as own, faster_disentangled(model) as disentangled:
        if own is not None:
            own.used = False  # during training it is shared, and another model may have set this
        yield lambda: disentangled.used or (own is not None and own.used)


def _packed_layout(model: nn.Module, autocast: Autocast) -> Layout | str:
    """The layout for packed rows, or why there is none."""
    reason = mixing_reason(model)
    if reason:
        return reason
    attention = model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        return f"attention {attention!r} takes no mask of blocks; load it with attn_implementation='sdpa' or 'eager'"
    reach = longest_reach(model)
    lengths = PROBED if reach is None or reach > LONGEST_PROOF else (*PROBED[:2], reach + 5, reach + 9)
    reasons = []
    for masks in mask_candidates(model):
        layout = Layout(first_position(model), _padding(model), masks=masks)
        try:
            with packed_attention(model) as in_blocks:
                error = _error(model, layout, lengths, autocast)
        except FAILURES as problem:
            reasons.append(f"it does not take a block mask ({' '.join(str(problem).split())[:120] or type(problem)})")
            continue
        if error is None:
            return in_long_rows(layout, getattr(model.config, "hidden_size", None)) if in_blocks() else layout
        reasons.append(f"{attention!r} attention mixes packed sentences (outputs differ by {error:.1g} of their size)")
    return reasons[0]


def _plain_layout(model: nn.Module, autocast: Autocast) -> Layout:
    """The layout for plain rows: of any lengths, or only of equal ones."""
    layout = Layout(first_position(model), _padding(model), packing=False)
    name = type(model).__name__
    with packed_attention(model):
        try:
            if _error(model, layout, PROBED, autocast) is None:
                return layout
            error = _error(model, layout, (7, 7, 7), autocast)
        except FAILURES as problem:
            reason = " ".join(str(problem).split())[:200] or type(problem).__name__
            fix = "use another model"
            if autocast is not nullcontext:  # DeBERTa's first version and X-MOD run in float32 only
                fix = "compute in float32 with precision='fp32'"
            raise ValueError(
                f"{name} fails on a batch of {counted(len(PROBED), 'sentence')}, given as token ids and their mask"
                f" ({reason}): {fix}"
            ) from problem
    if error is not None:
        raise ValueError(
            f"{name} gives a sentence another output beside other sentences of the same length than "
            f"alone (by {error:.1g} of its size), so it cannot be used in batches: use another model"
        )
    return replace(layout, by_length=True, shortest=_shortest(model, autocast))


@torch.no_grad()
def _shortest(model: nn.Module, autocast: Autocast) -> int:
    """The fewest tokens that a model can read, up to 7; one that pools tokens (CANINE) fails on fewer."""
    for length in range(1, 7):
        ids = torch.from_numpy(_sentences(model, [length]).ids)[None].to(_device(model))
        with dry_run(model), autocast():
            model.eval()
            try:
                model(input_ids=ids)
            except FAILURES:
                continue
        return length
    return 7


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

    Raises:
        ValueError: the layout does not suit the engine, or FSDP.
    """
    check_layout(layout, engine, whole)
    if engine != "eager" or whole:
        layout = replace(layout, part_length=None)
    unit = {"eager": layout.unit, "compile": COMPILED_UNIT, "cuda_graphs": UNIT}[engine]
    few = engine != "eager" or layout.row_length is not None
    return with_few_shapes(layout, encoded, batch_size, unit) if few else layout


def check_layout(layout: Layout, engine: str = "eager", whole: bool = False) -> None:
    """Refuse a layout that an engine, or FSDP, cannot use; the arguments are those of `training_layout`.

    Raises:
        ValueError: with the fix.
    """
    reason = f", and this model is not packed, because {layout.reason}" if layout.reason else ""
    if engine != "eager" and not layout.packing:
        raise ValueError(f"engine {engine!r} needs packed rows{reason}: use engine 'eager'")
    if whole and layout.by_length:
        raise ValueError(
            "strategy 'fsdp' needs as many batches on every process, and this model takes only sentences of equal "
            f"length in a batch{reason}: use strategy 'ddp'"
        )


def first_position(model: nn.Module) -> int:
    """The position id of a sentence's first token: padding_idx + 1 in RoBERTa's family, otherwise 0."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def _padding(model: nn.Module) -> int:
    pad = model.config.pad_token_id
    return 0 if pad is None else pad


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def run_once(model: nn.Module, layout: Layout) -> None:
    """Run the model on a small batch of made-up sentences, in whatever mode and context it is."""
    probe = _sentences(model, (max(PROBED[0], layout.shortest),) * 2)  # of equal lengths: some layouts take no others
    batch = TokenTable(probe, layout, _device(model)).batch(plan_batch(probe, (0, 1), replace(layout, rows=None)))
    model(**layout.inputs(batch))


@torch.no_grad()
def _error(model: nn.Module, layout: Layout, lengths: Sequence[int], autocast: Autocast) -> float | None:
    """How far the output for sentences in one batch is from that for each alone, relative to the output's size.

    Returns:
        None if it is rounding. In a lower precision rounding is large, so float32 weights are also tried without
        autocast, where it is not.
    """
    probe = _sentences(model, lengths)
    plan = plan_batch(probe, range(len(lengths)), replace(layout, rows=2))  # two rows, if it is packed
    batch = TokenTable(probe, layout, _device(model)).batch(plan)
    dtype = torch.float32
    for parameter in model.parameters():
        if parameter.is_floating_point() and torch.finfo(parameter.dtype).eps > torch.finfo(dtype).eps:
            dtype = parameter.dtype
    tries = [(autocast, _autocast_dtype(autocast, model) or dtype)]
    if autocast is not nullcontext and dtype == torch.float32:
        tries.append((nullcontext, dtype))
    for context, coarsest in tries:
        worst = 0.0
        with dry_run(model), context():
            model.eval()
            together = model(**layout.inputs(batch))[0]
            for number in range(len(lengths)):
                mine = (batch.segments == number).nonzero(as_tuple=True)
                alone = model(input_ids=batch.input_ids[mine][None])[0][0]
                worst = max(worst, relative_error(together[mine], alone))
        if not is_rounding(worst, torch.finfo(coarsest).eps):
            return worst
    return None


def _sentences(model: nn.Module, lengths: Sequence[int]) -> Encoded:
    """Sentences of these lengths without special tokens, some of which a model treats in its own way (ESM's mask)."""
    config, total = model.config, sum(lengths)
    special = {value for name, value in vars(config).items() if name.endswith("token_id") and isinstance(value, int)}
    ids = [number for number in range(min(10, config.vocab_size - 1), config.vocab_size) if number not in special]
    ids = np.resize(np.array(ids[:total] or [0]), total)
    offsets = np.cumsum([0, *lengths])
    return Encoded(ids, np.full(total, IGNORE), np.full(total, -1), offsets, np.ones(len(lengths), np.int64))


def _autocast_dtype(autocast: Autocast, model: nn.Module) -> torch.dtype | None:
    kind = _device(model).type
    with autocast():
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two outputs, over the largest value that is expected."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-9))


def is_rounding(error: float, eps: float) -> bool:
    """Whether a `relative_error` is one of rounding; NaN is not.

    Args:
        error: of an output.
        eps: machine epsilon of the coarsest type that it is computed in.
    """
    return error < max(LARGEST_ERROR, ROUNDING * eps)
