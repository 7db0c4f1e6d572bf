"""Frozen weights in fewer bits: half precision, or quantized by torchao; what is trained stays float32."""

import math

import torch
from torch import nn

from lorakit.adapters.adapter import lora_state, unwrap
from lorakit.adapters.fingerprint import base_fingerprint, remember_shrunk
from lorakit.adapters.names import named_modules, plain_name, submodule
from lorakit.nn.master_weights import compute_in_autocast_type, compute_in_input_type
from lorakit.nn.weights import is_adapted, is_quantized, refuse_sharded

QUANTIZED = ("int8", "nf4")
NF4_BLOCK, NF4_SCALERS = 64, 256  # weights to a scale, scales to a scale of scales: torchao's defaults


def shrink_base(model: nn.Module, to: torch.dtype | str = torch.bfloat16) -> nn.Module:
    """Keep the frozen linear layers and convolutions of an adapted model in fewer bits, in place.

    Half precision: under autocast to the same type, logits and gradients are bit for bit those of the float32 base,
    which autocast would cast in every forward; half the memory and no casts. In float32 the weights are cast up while
    they are used, which costs time; layers that are not adapted keep that copy for backward. Quantized: a different,
    coarser base; merging gives full-precision weights.

    An adapter trained on the smaller base fits the base it came from, shrunk or not: both have the same fingerprint.

    Left alone are: what is trained; embeddings and weights tied to one (autocast does not cast them); layer norms; and
    with DoRA the adapted layers, whose norms are taken in float32.

    Example:
        import torch

        net = lorakit.apply_lora(torch.nn.Sequential(torch.nn.Linear(8, 8)), r=2, target_modules=["0"])
        lorakit.shrink_base(net, torch.bfloat16)
        print(net[0].weight.dtype, net[0].lora_A.dtype)  # torch.bfloat16 torch.float32

    Args:
        model: an unmerged model after `apply_lora` or `load_adapter`.
        to: torch.bfloat16 or torch.float16; or "int8" or "nf4", which need torchao.

    Returns:
        The same model. `remove_lora` and `disable_lora` do not restore the lost bits.

    Raises:
        ValueError: the model has no LoRA or is merged; or `to` is something else.
        ImportError: torchao is not installed.
    """
    plain = unwrap(model)
    lora_state(plain)
    refuse_sharded(plain, "shrink_base")
    if any(is_adapted(m) and m.merged for m in plain.modules()):
        raise ValueError("shrink_base on a merged model would keep two copies; call unmerge_lora first")
    if to not in (torch.bfloat16, torch.float16, *QUANTIZED):
        raise ValueError(f"to must be torch.bfloat16, torch.float16, {' or '.join(map(repr, QUANTIZED))}; got {to!r}")
    left_out = {tuple(sorted(adapter.saved)) for adapter in lora_state(plain).adapters.values()}
    before = {saved: base_fingerprint(plain, saved) for saved in left_out}
    if to in QUANTIZED:
        _quantize(plain, to)
    else:
        for _, module in _matrices(plain):
            for parameter in (module.weight, getattr(module, "bias", None)):
                if parameter is not None and not parameter.requires_grad:
                    parameter.data = parameter.data.to(to)
            compute_in_input_type(module)
    remember_shrunk(plain, before)
    return model


def _matrices(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Linear layers and convolutions with a frozen floating-point weight that nothing else uses in another way."""
    kinds = nn.Linear | nn.Conv2d
    other = {
        id(p) for m in model.modules() if not (isinstance(m, kinds) or _is_conv1d(m)) for p in m._parameters.values()
    }
    return [
        (name, m)
        for name, m in named_modules(model)
        if (isinstance(m, kinds) or _is_conv1d(m))
        and not m.weight.requires_grad
        and not is_quantized(m.weight)
        and id(m.weight) not in other
        and getattr(m, "lora_magnitude", None) is None
    ]


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ in ("Conv1D", "LoRAConv1D")


def _quantize(model: nn.Module, to: str) -> None:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise ImportError(f"a base in {to} needs torchao: pip install torchao") from None
    linear = {name for name, module in _matrices(model) if isinstance(module, nn.Linear)}
    if to == "int8":
        quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda _, name: plain_name(name) in linear)
    else:
        from torchao.quantization import to_nf4

        modules = {name: submodule(model, name) for name in sorted(linear)}
        for name, module in modules.items():  # before any is packed
            if rest := module.weight.numel() % NF4_BLOCK:
                raise ValueError(
                    f"{name}: nf4 packs blocks of {NF4_BLOCK} weights, this layer has {rest} left over; use 'int8'"
                )
        for module in modules.values():
            scalers = math.gcd(module.weight.numel() // NF4_BLOCK, NF4_SCALERS)
            packed = to_nf4(module.weight.detach(), NF4_BLOCK, scalers)
            module.weight = nn.Parameter(packed, requires_grad=False)
    for name in linear:
        compute_in_autocast_type(submodule(model, name))
