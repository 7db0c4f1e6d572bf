"""The forward of a batch whose rows belong to several runs: the loss of every row, eager or compiled.

Compiled, it sees neither the runs nor how many they are, but what their adapters are for each row. So nothing is
compiled again when a run ends or another one starts: only for a new shape of the batch, of which there are few
(`plan_by_adapter`).
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.data.packing import Batch, Layout
from lorakit.data.tokenization import IGNORE
from lorakit.nn.stacked import compiled_stacks, stacked
from lorakit.training.dry_run import dry_run
from lorakit.training.graphs import compile_in_place, one_graph
from lorakit.training.precision import Autocast
from lorakit.training.stacked_parameters import StackedParameters, stacks_of

Constants = Mapping[str, Mapping[str, Tensor]]


class RowLosses(nn.Module):
    """The sum of the losses of each row of a batch, (rows,), in float32.

    Args:
        model: adapted.
        layout: how it takes its batches.
        parameters: what is trained.
    """

    def __init__(self, model: nn.Module, layout: Layout, parameters: StackedParameters) -> None:
        super().__init__()
        self.model, self.layout = model, layout
        self.parts, self.stacked = parameters.parts, parameters.modules

    def forward(self, batch: Batch, chosen: Tensor, constants: Constants, outside: Tensor | None) -> Tensor:
        """Compute the losses.

        Args:
            batch: whose rows have one adapter each.
            chosen, constants: the adapters, from `StackedParameters.of_rows`.
            outside: (rows, labels), whether a label is none of the row's run; None where all have all labels.
        """
        logits = self.logits(batch, chosen, constants)
        if outside is not None:
            logits = logits.masked_fill(outside[:, None], -torch.inf)
        words = F.cross_entropy(
            logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=IGNORE, reduction="none"
        )
        return words.view(len(chosen), -1).sum(1)

    def logits(self, batch: Batch, chosen: Tensor, constants: Constants) -> Tensor:
        """The model's output, with each row's adapter."""
        with stacked(self.stacked, stacks_of(self.parts, chosen, constants), len(chosen)):
            return self.model(**self.layout.inputs(batch))[0]


class EagerRows:
    """Runs every operation as it comes."""

    def __init__(self, losses: RowLosses, autocast: Autocast) -> None:
        self.losses, self.autocast = losses, autocast

    @contextmanager
    def open(self) -> Iterator[None]:
        """While active, the model is used for nothing but steps."""
        yield

    def prepare(self, batch: Batch, chosen: Tensor, constants: Constants, outside: Tensor | None) -> float | None:
        """Compile what such a batch needs; returns the seconds it took, None if nothing was new."""
        return None

    def __call__(self, batch: Batch, chosen: Tensor, constants: Constants, outside: Tensor | None) -> Tensor:
        """The losses; the arguments are those of `RowLosses`."""
        with self.autocast():
            return self.losses(batch, chosen, constants, outside)


class CompiledRows(EagerRows):
    """Compiles the losses, in place, shape by shape: without a graph break, or with an error that names it.

    Raises:
        ValueError: there is no C++ compiler for a CPU.
    """

    def __init__(self, losses: RowLosses, autocast: Autocast) -> None:
        super().__init__(losses, autocast)
        self.device = next(losses.parameters()).device
        compile_in_place(losses, self.device)
        self.ready: set[tuple[object, ...]] = set()

    @contextmanager
    def open(self) -> Iterator[None]:
        with compiled_stacks(self.losses.stacked.values()):
            yield

    def prepare(self, batch: Batch, chosen: Tensor, constants: Constants, outside: Tensor | None) -> float | None:
        kinds = tuple((name, *sorted(kept)) for name, kept in constants.items())
        key = (batch.input_ids.shape, kinds, outside is None)
        if key in self.ready:
            return None
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()  # work in flight is training
        began = time.perf_counter()
        given = chosen.detach().requires_grad_()
        with one_graph(self.losses.model), dry_run(self.losses):
            for _ in range(3 if cuda else 1):  # on a GPU the first run warms up, the second records, the third replays
                torch.autograd.grad(self(batch, given, constants, outside).sum(), given)
        if cuda:
            torch.cuda.synchronize()
        self.ready.add(key)
        return time.perf_counter() - began
