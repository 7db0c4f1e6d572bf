"""The precision of a run: its autocast, and frozen weights held in the type that autocast casts them to.

Autocast keeps casts of trained weights only. A frozen matrix is cast again in every forward, and that copy is kept for
backward. Held in the lower type instead, every use sees the same bits, with fewer casts and half the memory.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorakit.nn.weights import is_quantized
from lorakit.training.distributed import world_size
from lorakit.training.dry_run import dry_run

SWITCH = "LORAKIT_CPU_BF16"
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")  # the last is ARM's
MOST_TIME = 0.8  # of a float32 matmul's: below, bf16 pays although other operations gain nothing
WIDTH, TRIES = 768, 5  # of the matmuls that are timed
Autocast = Callable[[], AbstractContextManager[Any]]


def autocast_for(precision: str, device: torch.device) -> tuple[Autocast, bool]:
    """The autocast context of a precision on a device, and whether the loss needs scaling.

    Args:
        precision: "auto", "fp32", "bf16" or "fp16".
        device: on which the model runs; it decides what "auto" means.
    """
    if precision == "auto":
        if device.type != "cuda":
            precision = "bf16" if device.type == "cpu" and cpu_prefers_bf16() else "fp32"
        else:
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if precision == "fp32":
        return nullcontext, False
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return lambda: torch.autocast(device.type, dtype), precision == "fp16"


def cpu_prefers_bf16() -> bool:
    """Whether "auto" is bf16 on this CPU: LORAKIT_CPU_BF16=1 allows it, the CPU has the instructions, and they pay.

    Not by default: that bf16 costs no F1 on a CPU has not been shown yet.

    Raises:
        ValueError: LORAKIT_CPU_BF16 is not 0, 1 or empty.
    """
    wish = os.environ.get(SWITCH, "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"{SWITCH} is {wish!r}; it must be 1 (auto is bf16 where that is faster on a CPU), 0 or empty")
    if wish != "1" or bf16_instructions(torch.cpu.get_capabilities()) is None:
        return False
    return world_size() > 1 or bf16_share() <= MOST_TIME  # clocks of several processes could disagree


def bf16_instructions(capabilities: Mapping[str, Any]) -> str | None:
    """The name of a CPU's matrix instructions for bf16; None without any, where bf16 is emulated and slow.

    Args:
        capabilities: from `torch.cpu.get_capabilities`.
    """
    return next((name for name in BF16_INSTRUCTIONS if capabilities.get(name) is True), None)


@cache
def bf16_share(clock: Callable[[], float] = time.perf_counter) -> float:
    """The time of a bf16 matmul of a base's size over that of a float32 one, measured once: some 50 ms."""
    shares = []
    for dtype in (torch.bfloat16, torch.float32):
        x, weight = (torch.ones(rows, WIDTH, dtype=dtype) for rows in (512, 4 * WIDTH))
        times = []
        for _ in range(1 + TRIES):  # the first one builds kernels
            began = clock()
            torch.nn.functional.linear(x, weight)
            times.append(clock() - began)
        shares.append(min(times[1:]))
    return shares[0] / shares[1]


@contextmanager
def frozen_in_half(
    model: nn.Module, autocast: Autocast, use: Callable[[], Any], predicts: bool = False
) -> Iterator[None]:
    """While active, frozen parameters are held in autocast's type; then the originals are restored, bit for bit.

    Only parameters that `use` does nothing with but cast to this type are held: not layer norms and embeddings, nor a
    matrix that is also an embedding or whose norms are taken (DoRA). In training the originals are moved to the host,
    so on a GPU they take half the memory.

    Args:
        model: in fp32.
        autocast: the context in which the model will run; nothing changes if it does not autocast.
        use: runs the model once, on any input; it is called in training and in evaluation mode, under autocast.
        predicts: nothing will be trained, so trained parameters are held, too, and `use` is called in evaluation mode
            only. The originals stay where they are: other models may share them.
    """
    originals: dict[nn.Parameter, Tensor] = {}
    try:
        for parameter, dtype in only_cast(model, autocast, use, predicts):
            # on a GPU memory is short; on a CPU a copy would only cost more of it
            moves = parameter.is_cuda and not predicts
            originals[parameter] = parameter.data.cpu() if moves else parameter.data
            parameter.data = parameter.data.to(dtype)
        yield
    finally:
        for parameter, original in originals.items():
            parameter.data = original.to(parameter.device)


def only_cast(
    model: nn.Module, autocast: Autocast, use: Callable[[], Any], predicts: bool = False
) -> list[tuple[nn.Parameter, torch.dtype]]:
    """The frozen parameters that `use` casts to autocast's type and reads in no other way, with that type."""
    kind = next(model.parameters()).device.type
    with autocast():
        if not torch.is_autocast_enabled(kind):
            return []
        dtype = torch.get_autocast_dtype(kind)
        frozen = [p for p in model.parameters() if (predicts or not p.requires_grad) and _is_wider(p, dtype)]
        reads = _Reads(frozen, dtype)
        with dry_run(model), torch.no_grad(), reads:
            for training in (False,) if predicts else (True, False):
                model.train(training)
                use()
    return [(p, dtype) for p in frozen if _storage(p) in reads.cast - reads.otherwise]


class _Reads(TorchDispatchMode):
    """Notes how operations read parameters' memory, also through views: to cast it to a type, or otherwise."""

    def __init__(self, parameters: list[nn.Parameter], dtype: torch.dtype) -> None:
        super().__init__()
        self.watched, self.dtype = {_storage(p) for p in parameters}, dtype
        self.cast: set[int] = set()
        self.otherwise: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not function.is_view:
            casts = function.overloadpacket is torch.ops.aten._to_copy and kwargs.get("dtype") == self.dtype
            for value in tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and _storage(value) in self.watched:
                    (self.cast if casts else self.otherwise).add(_storage(value))
        return function(*args, **kwargs)


def _is_wider(parameter: Tensor, dtype: torch.dtype) -> bool:
    """Whether the parameter takes more memory than its cast: a quantized one, whatever its dtype says, does not."""
    return parameter.is_floating_point() and parameter.dtype != dtype and not is_quantized(parameter)


def _storage(tensor: Tensor) -> int | None:
    """The address of the tensor's memory; None for a quantized one, which has several pieces."""
    return None if is_quantized(tensor) else tensor.untyped_storage().data_ptr()
