"""What several adapters train, as one matrix with a row per adapter, and AdamW on all of it at once.

A step of N adapters then takes as many operations as a step of one: their A's, B's and heads are views of the matrix,
its gradient has the same shape, and each row has a rate, a decay, a norm to clip and a count of steps of its own.
Columns that an adapter does not use (a higher rank, a layer of others, labels of others) are zero and stay zero.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import Adapter, untouched
from lorakit.adapters.names import submodule
from lorakit.nn.stacked import Stack, corner, padded
from lorakit.nn.weights import Update, update_shapes

BETAS, EPSILON = (0.9, 0.999), 1e-8  # AdamW's defaults in torch, which a single run uses


@dataclass(frozen=True)
class Part:
    """Columns of the matrix: one tensor of every adapter.

    Attributes:
        module: full name of the module.
        key: "A", "B", "weight" or "bias".
        shape: for one adapter.
        columns: where it is.
    """

    module: str
    key: str
    shape: tuple[int, ...]
    columns: slice

    @property
    def parameter(self) -> str:
        """The parameter's full name in an adapted model."""
        return f"{self.module}.lora_{self.key}" if self.key in "AB" else f"{self.module}.{self.key}"


class StackedParameters:
    """The trained values of several adapters, and the optimizer's state for them.

    Args:
        model: an adapted model, on its device.
        adapters: all that will ever have a row, which decide the columns; what of the base they train in place is in
            their `values`.
        steady: always stack the constants that any of them has, so that a step's tensors stay the same ones.
    """

    def __init__(self, model: nn.Module, adapters: Iterable[Adapter], steady: bool = False) -> None:
        adapters = list(adapters)
        self.in_any = adapters if steady else []
        keys = {key for adapter in adapters for key in adapter.values}
        self.base = {key: untouched(model, key) for key in keys}
        self.same_keys = all(adapter.values.keys() == keys for adapter in adapters)
        self.device = next(model.parameters()).device
        self.parts = tuple(_parts(model, adapters))
        self.modules = {part.module: submodule(model, part.module) for part in self.parts}
        self.width = sum(math.prod(part.shape) for part in self.parts)
        self.values = torch.zeros(0, self.width, device=self.device)
        self.first, self.second = self.values.clone(), self.values.clone()  # AdamW's moments
        self.scale, self.ratio, self.decay = self.values.clone(), self.values.clone(), self.values.clone()
        self.steps = torch.zeros(0, 1, device=self.device, dtype=torch.float64)  # 1 - 0.999 is coarse in float32
        self.adapters: list[Adapter] = []

    def __len__(self) -> int:
        return len(self.adapters)

    def add(self, adapter: Adapter, groups: Mapping[str, tuple[float, float]]) -> None:
        """Give an adapter a new row, the last.

        Args:
            adapter: with its values.
            groups: by parameter, its rate over the run's, and its weight decay.
        """
        row = {name: torch.zeros(1, self.width, device=self.device) for name in ("values", "scale", "ratio", "decay")}
        row["scale"].fill_(1.0)
        for part in self.parts:
            value = _value_of(part, adapter)
            if value is None:  # zeros, or the base's own value, with a rate of 0
                if part.parameter in self.base:
                    base = self.base[part.parameter]
                    corner(row["values"][0, part.columns].view(part.shape), base.shape).copy_(base)
                continue
            ratio, decay = groups[part.parameter]
            for name, filled in (("values", value), ("ratio", ratio), ("decay", ratio * decay)):
                corner(row[name][0, part.columns].view(part.shape), value.shape).copy_(torch.as_tensor(filled))
            if part.key == "B":
                row["scale"][0, part.columns] = adapter.updates[part.module].scaling
        for name, new in row.items():
            setattr(self, name, torch.cat([getattr(self, name), new]))
        for name in ("first", "second", "steps"):
            old = getattr(self, name)
            setattr(self, name, torch.cat([old, old.new_zeros(1, old.shape[1])]))
        self.adapters.append(adapter)
        self._keep_constants()

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        index = torch.tensor(rows, dtype=torch.long, device=self.device)
        for name in ("values", "first", "second", "scale", "ratio", "decay", "steps"):
            setattr(self, name, getattr(self, name).index_select(0, index))
        self.adapters = [self.adapters[row] for row in rows]
        self._keep_constants()

    def adapter(self, row: int) -> Adapter:
        """The adapter of a row with copies of its present values."""
        tensors = {name: view.clone() for name, view in self._views(self.values, row)}
        return with_tensors(self.adapters[row], tensors)

    def row_state(self, row: int) -> dict[str, dict[str, Any]]:
        """A row's values and optimizer state, by parameter, as `TrainState.state_dict` has those of a run alone."""
        step = float(self.steps[row])
        values, first, second = (
            {name: view.clone() for name, view in self._views(matrix, row)}
            for matrix in (self.values, self.first, self.second)
        )
        moments = {
            name: {"step": torch.tensor(step), "exp_avg": first[name], "exp_avg_sq": second[name]} for name in values
        }
        return {"model": values, "optimizer": moments}

    def load_row(self, row: int, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Give a row what `row_state` gave."""
        moments = state["optimizer"]
        for matrix, found in (
            (self.values, state["model"]),
            (self.first, {name: kept["exp_avg"] for name, kept in moments.items()}),
            (self.second, {name: kept["exp_avg_sq"] for name, kept in moments.items()}),
        ):
            for name, view in self._views(matrix, row):
                view.copy_(found[name])
        self.steps[row] = float(next(iter(moments.values()))["step"])

    def _views(self, matrix: Tensor, row: int) -> Iterator[tuple[str, Tensor]]:
        """What of a row is its adapter's own, by parameter."""
        for part in self.parts:
            like = _value_of(part, self.adapters[row])
            if like is not None:
                yield part.parameter, corner(matrix[row, part.columns].view(part.shape), like.shape)

    def of_rows(self, values: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
        """What `stacks_of` needs for a batch: for each of its rows a matrix' row, and by module what is not trained.

        Args:
            values: (adapters, width), which may require a gradient.
            rows: (rows of the batch,), the adapter of each.
        """
        chosen = (values * self.scale).index_select(0, rows)
        constants = {
            name: {key: value.index_select(0, rows) for key, value in kept.items()}
            for name, kept in self._constants.items()
        }
        return chosen, constants

    @torch.no_grad()
    def step(self, grad: Tensor, rates: Tensor, max_norms: Tensor) -> tuple[Tensor, Tensor]:
        """One step of AdamW on every row, as `torch.nn.utils.clip_grad_norm_` and `torch.optim.AdamW` take it for one.

        A row whose gradient is not finite stays as it is.

        Args:
            grad: (rows, width).
            rates: (rows, 1), the learning rates.
            max_norms: (rows, 1), what gradients are clipped to.

        Returns:
            The norms before clipping, and whether each row was skipped, both (rows, 1).
        """
        if not self.same_keys:  # a value of the base that only others train
            grad = grad * (self.ratio > 0)
        norms = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
        taken = torch.isfinite(norms)
        clip = torch.where(taken, (max_norms / (norms + 1e-6)).clamp_max(1.0), 0.0)
        grad = torch.where(taken, grad * clip, 0.0)
        self.steps += taken
        moved = taken.to(grad.dtype)
        self.first.lerp_(grad, (1 - BETAS[0]) * moved)
        self.second.lerp_(grad * grad, (1 - BETAS[1]) * moved)
        steps = self.steps.clamp_min(1)  # a row that was only skipped has taken none
        rates = rates * moved
        self.values.addcmul_(self.values * self.decay, rates, value=-1)
        size = (rates / (1 - BETAS[0] ** steps)).to(grad.dtype)
        below = (self.second.sqrt() / (1 - BETAS[1] ** steps).sqrt().to(grad.dtype)).add_(EPSILON)
        self.values.addcmul_(self.first / below * self.ratio, size, value=-1)
        return norms, ~taken

    def _keep_constants(self) -> None:
        """Stack what is not trained: dropout rates, and the starts of PiSSA and OLoRA."""
        self._constants: dict[str, dict[str, Tensor]] = {}
        rates = torch.tensor([adapter.config.lora_dropout for adapter in self.adapters], device=self.device)
        drops = any(adapter.config.lora_dropout for adapter in [*self.in_any, *self.adapters])
        for part in self.parts:
            if part.key not in "AB":
                continue
            constants = self._constants.setdefault(part.module, {})
            if drops:
                constants["dropout"] = rates[:, None, None]
            starts = [_start_of(part, adapter) for adapter in self.adapters]
            if any(_start_of(part, adapter) is not None for adapter in [*self.in_any, *self.adapters]):
                constants[f"start_{part.key}"] = padded(starts, part.shape, self.device)


def stacks_of(parts: Sequence[Part], chosen: Tensor, constants: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Stack]:
    """The stacks of all modules, with an adapter for each row of a batch, as views of one matrix.

    Args:
        parts: of `StackedParameters`.
        chosen, constants: from `StackedParameters.of_rows`.
    """
    found: dict[str, dict[str, Tensor]] = {}
    # split's backward is one cat; that of slices would fill a matrix for each
    views = chosen.split([math.prod(part.shape) for part in parts], dim=1)
    for part, view in zip(parts, views, strict=True):
        found.setdefault(part.module, {})[part.key] = view.view(-1, *part.shape)
    return {name: Stack(**tensors, **constants.get(name, {})) for name, tensors in found.items()}


def tensors_of(adapter: Adapter) -> dict[str, Tensor]:
    """What an adapter trains, by parameter."""
    found = dict(adapter.values)
    for name, update in adapter.updates.items():
        found |= {f"{name}.lora_A": update.A, f"{name}.lora_B": update.B}
    return found


def with_tensors(adapter: Adapter, tensors: Mapping[str, Tensor]) -> Adapter:
    """An adapter with other values, by parameter."""
    updates = {
        name: replace(update, A=tensors[f"{name}.lora_A"], B=tensors[f"{name}.lora_B"])
        for name, update in adapter.updates.items()
    }
    return replace(adapter, updates=updates, values={name: tensors[name] for name in adapter.values})


def _parts(model: nn.Module, adapters: Sequence[Adapter]) -> Iterator[Part]:
    """The columns that hold every tensor of these adapters, in the largest rank that a layer has in any.

    An output layer has as many rows as the largest set of labels.
    """
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    for name in dict.fromkeys(name for adapter in adapters for name in adapter.updates):
        r = max(len(adapter.updates[name].A) for adapter in adapters if name in adapter.updates)
        shapes[name, "A"], shapes[name, "B"] = update_shapes(submodule(model, name), r)
    for adapter in adapters:
        for name, value in adapter.values.items():
            owner, _, key = name.rpartition(".")
            shape = shapes.get((owner, key), value.shape)
            shapes[owner, key] = tuple(map(max, shape, value.shape))
    at = 0
    for (module, key), shape in shapes.items():
        yield Part(module, key, shape, slice(at, at + math.prod(shape)))
        at += math.prod(shape)


def _value_of(part: Part, adapter: Adapter) -> Tensor | None:
    """The adapter's tensor for these columns; None if it has none."""
    if part.key not in "AB":
        return adapter.values.get(part.parameter)
    update: Update | None = adapter.updates.get(part.module)
    return None if update is None else getattr(update, part.key)


def _start_of(part: Part, adapter: Adapter) -> Tensor | None:
    """What the adapter's update counts from in these columns, times the scale for B; None if that is zero."""
    update = adapter.updates.get(part.module)
    if update is None or update.start is None:
        return None
    return update.start[0] if part.key == "A" else update.scaling * update.start[1]
