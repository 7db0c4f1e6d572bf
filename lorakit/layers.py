"""The adapted layers: a frozen layer plus a trainable low-rank update, and their maths.

A layer becomes its LoRA form by class swap (`module.__class__ = LoRALinear`): it stays the same object, so its
hooks, its parameters' names and identities and every reference to it (shared modules, optimisers) stay valid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADAPTER_PARAMETERS = ("lora_A", "lora_B")
"""Names of the parameters that a LoRA form adds to its layer."""


class LoRALayer(nn.Module):
    """What every adapted layer has: A, B, a scale, and the three states plain, off and merged.

    `lora_A` and `lora_B` are float32 parameters beside the layer's own; the update is cast to the input's dtype, never
    the input to the update's. Dropout acts on the update's input only, follows `training` and draws from torch's
    default generator (a private one would not be restored when gradient checkpointing runs the forward again).
    """

    base_class: type[nn.Module]

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_original: Tensor | None  # the untouched weight while merged
    r: int
    lora_alpha: float
    scaling: float
    lora_dropout: float
    lora_off: bool  # True inside disable_lora(): compute what the untouched layer computes

    @property
    def merged(self) -> bool:
        """Whether the update is now part of `weight`."""
        return self.lora_original is not None

    def base_weight(self) -> Tensor:
        """The weight to compute with: the untouched one where the update is off although it is merged."""
        return self.lora_original if self.lora_off and self.lora_original is not None else self.weight

    def delta_weight(self) -> Tensor:
        """The update scale·BA in float32, in the shape of `weight`."""
        raise NotImplementedError

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to `weight` (computed in float32) and keep the original for a bit-exact `unmerge`."""
        if not self.merged:
            self.register_buffer("lora_original", self.weight.detach().clone(), persistent=False)
            self.weight.copy_(self.weight.float() + self.delta_weight())

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the original weight back, bit for bit."""
        if self.merged:
            self.weight.copy_(self.lora_original)
            self.register_buffer("lora_original", None, persistent=False)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """Write the unmerged form always, so that a saved update can never be applied twice on loading."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:
            destination[f"{prefix}weight"] = self.lora_original

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: object) -> None:
        if self.merged and f"{prefix}weight" in state_dict:
            raise RuntimeError(f"cannot load into {prefix[:-1]!r} while LoRA is merged; call unmerge_lora first")
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r={self.r}, lora_alpha={self.lora_alpha:g}, lora_dropout={self.lora_dropout:g}"


class LoRALinear(LoRALayer, nn.Linear):
    """A frozen linear layer plus a trainable update: y = xWᵀ + b + scale·drop(x)AᵀBᵀ.

    B starts at zero, so a new layer computes exactly what its base did (arXiv:2106.09685, §4.1). The scale is alpha/r,
    or alpha/√r with rsLoRA. Made by `apply_lora`, not constructed.

    Shape:
        x (..., in_features) -> (..., out_features); lora_A (r, in_features); lora_B (out_features, r).
    """

    base_class = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.base_weight(), in_dtype_of(x, self.bias))
        if self.lora_off:
            return y
        if self.merged:
            return refuse_backward(y, self.lora_A)
        if self.lora_dropout and self.training:
            x = F.dropout(x, self.lora_dropout)
        xA = F.linear(x, in_dtype_of(x, self.lora_A)).reshape(-1, self.r)  # (tokens, r)
        B = in_dtype_of(x, self.lora_B)
        return torch.addmm(y.reshape(-1, self.out_features), xA, B.T, alpha=self.scaling).view(y.shape)

    def delta_weight(self) -> Tensor:
        return self.scaling * (self.lora_B.float() @ self.lora_A.float())


LORA_CLASS: dict[type[nn.Module], type[LoRALayer]] = {nn.Linear: LoRALinear}
"""The LoRA form of each kind of layer that can carry an update."""


def lora_class(module: nn.Module) -> type[LoRALayer] | None:
    """The LoRA form for exactly this kind of layer, else None (a subclass may compute something else)."""
    return LORA_CLASS.get(type(module))


def attach(module: nn.Module, A: Tensor, B: Tensor, lora_alpha: float, scaling: float, lora_dropout: float) -> None:
    """Turn `module` into its LoRA form in place.

    Args:
        module: A layer for which `lora_class` has a form.
        A: (r, in), float32.
        B: (out, r), float32.
        lora_alpha: Only shown and saved; `scaling` is what computes.
        scaling: Factor on BA.
        lora_dropout: Probability in [0, 1) of zeroing an input of the update.
    """
    form = lora_class(module)
    assert form is not None, f"{type(module).__name__} has no LoRA form"
    module.__class__ = form
    module.r, module.lora_alpha, module.scaling, module.lora_dropout = len(A), lora_alpha, scaling, lora_dropout
    module.lora_off = False
    module.lora_A, module.lora_B = nn.Parameter(A), nn.Parameter(B)
    module.register_buffer("lora_original", None, persistent=False)


def detach(module: LoRALayer) -> None:
    """Take the LoRA form off again: class, attributes and parameters as they were; `weight` stays as it is."""
    for name in ADAPTER_PARAMETERS:
        delattr(module, name)
    del module.lora_original
    for name in ("r", "lora_alpha", "scaling", "lora_dropout", "lora_off"):
        delattr(module, name)
    module.__class__ = module.base_class


def in_dtype_of(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    """`parameter` in x's dtype (casting x up would double its memory); as it is under autocast, which casts both."""
    if parameter is None or parameter.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
        return parameter
    return parameter.to(x.dtype)


class _RefuseBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, y: Tensor, parameter: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> None:
        raise RuntimeError(
            "backward through a merged LoRA layer: a merged update gets no gradient, so nothing would be trained; "
            "call unmerge_lora(model) before training"
        )


def refuse_backward(y: Tensor, parameter: Tensor) -> Tensor:
    """`y` itself; a backward pass that reaches it raises, where otherwise `parameter` would silently learn nothing."""
    return _RefuseBackward.apply(y, parameter) if torch.is_grad_enabled() and parameter.requires_grad else y
