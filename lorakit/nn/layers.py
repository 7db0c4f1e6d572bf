"""The adapted layers: a frozen layer plus a trainable low-rank update, and their maths.

A layer becomes its LoRA form by class swap (`module.__class__ = LoRALinear`): it stays the same object, so its hooks,
its parameters' names and identities and every reference to it (shared modules, optimisers) stay valid.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakit.nn.functional import can_fuse, lora_linear, merging_pays, no_view
from lorakit.nn.kernels import linear
from lorakit.nn.weights import like, whole

CONV1D = "transformers.pytorch_utils.Conv1D"
"""GPT-2's linear layer with a transposed weight, known by its name: this file does not import transformers."""


@dataclass(frozen=True)
class Update:
    """The values of one layer's update, float32: what an adapter file holds for the layer, and its constants."""

    A: Tensor  # (r, in); embedding (r, rows); convolution (r, in, height, width)
    B: Tensor  # (out, r); embedding (width, r); convolution (out, r, 1, 1)
    lora_alpha: float  # only shown and saved
    scaling: float  # the factor on BA
    magnitude: Tensor | None = None  # (out,), convolution (1, out, 1, 1): DoRA's
    start: tuple[Tensor, Tensor] | None = None  # A and B to subtract: what PiSSA and OLoRA take out of the weight


class LoRALayer(nn.Module):
    """What every adapted layer has: A, B, a scale, and the three states plain, off and merged.

    `lora_A` and `lora_B` are float32 parameters beside the layer's own; the update is cast to the input's dtype, never
    the input to the update's. Dropout acts on the update's input only, follows `training` and draws from torch's
    default generator (a private one would not be restored when gradient checkpointing runs the forward again).

    With DoRA (arXiv:2402.09353) the adapted weight W + scale·BA is rescaled to the trained `lora_magnitude` in each
    output; its norm counts as a constant in backward (§4.3). With PiSSA and OLoRA the weight stays as it is and the
    update is counted from its start: scale·(BA - B₀A₀).
    """

    base_class: type[nn.Module]

    weight: nn.Parameter
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_magnitude: nn.Parameter | None
    lora_original: Tensor | None  # the untouched weight while merged
    lora_start_A: Tensor | None
    lora_start_B: Tensor | None
    r: int
    lora_alpha: float
    scaling: float
    fused: bool  # whether one addmm gives the bits of separate operations
    lora_dropout: float
    lora_off: bool  # True inside disable_lora(): compute what the untouched layer computes

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        if self.lora_off or self.merged:
            y = self.base_output(x, self.base_weight(), *rest)
            return y if self.lora_off else refuse_backward(y, self.lora_A)
        return self.adapted_output(x, *rest)

    def adapted_output(self, x: Tensor, *rest: Any) -> Tensor:
        """The layer's own output with the update's on top."""
        return self.add_update(x, self.base_output(x, self.weight, *rest))

    def base_output(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the layer computes with this weight and its own bias."""
        raise NotImplementedError

    def update_output(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """BA applied to x, unscaled, in x's dtype."""
        raise NotImplementedError

    def add_update(self, x: Tensor, y: Tensor) -> Tensor:
        """The output with the update on top of the layer's own output y."""
        dropped = F.dropout(x, self.lora_dropout) if self.lora_dropout and self.training else x
        update = self.update_output(dropped, self.lora_A, self.lora_B)
        if self.lora_start_A is not None:
            update = update - self.update_output(x, self.lora_start_A, self.lora_start_B)
        if self.lora_magnitude is None:
            return y + update * self.scaling
        # the sums below, here and in the other layers, are in PEFT's order: the same adapter gives the same bits
        bare = self.bare_output(dropped) if dropped is not x else self.without_bias(y)
        factor = self.along_outputs(self.magnitude_factor()).to(y.dtype)
        return y + ((factor - 1) * bare + factor * update * self.scaling)

    def bare_output(self, x: Tensor) -> Tensor:
        """What the untouched layer computes without its bias."""
        return self.without_bias(self.base_output(x, self.weight))

    def without_bias(self, y: Tensor) -> Tensor:
        bias = getattr(self, "bias", None)
        return y if bias is None else y - self.along_outputs(bias).to(y.dtype)

    def along_outputs(self, values: Tensor) -> Tensor:
        """One value per output, shaped to multiply the layer's output."""
        return values

    @property
    def merged(self) -> bool:
        """Whether the update is now part of `weight`."""
        return self.lora_original is not None

    def base_weight(self) -> Tensor:
        """The weight to compute with: the untouched one where the update is off although it is merged.

        A sharded one is gathered by its engine from `weight`, where `disable_lora` has then put the untouched values.
        """
        if self.lora_off and self.merged and not hasattr(self.lora_original, "full_tensor"):
            return self.lora_original
        return self.weight

    def product(self, A: Tensor, B: Tensor) -> Tensor:
        """BA in float32, in the shape of `weight`."""
        return B.float() @ A.float()

    def delta_weight(self) -> Tensor:
        """The update scale·BA (from its start, if it has one) in float32, in the shape of `weight`; without DoRA."""
        delta = self.product(whole(self.lora_A), whole(self.lora_B))
        if self.lora_start_A is not None:
            delta = delta - self.product(self.lora_start_A, self.lora_start_B)
        return self.scaling * delta

    def output_norms(self, weight: Tensor) -> Tensor:
        """Norm of each output's weights."""
        return torch.linalg.norm(weight, dim=1)

    @torch.no_grad()
    def adapted_norms(self) -> Tensor:
        """Norm of each output's weights with the update, float32."""
        return self.output_norms(plain_weight(self).float() + self.delta_weight())

    def magnitude_factor(self) -> Tensor:
        """DoRA's factor per output: the trained magnitude over the adapted weight's norm."""
        return whole(self.lora_magnitude) / self.adapted_norms()

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Weight and update in one, float32."""
        weight = plain_weight(self).float() + self.delta_weight()
        return weight if self.lora_magnitude is None else weight * self.along_rows(self.magnitude_factor())

    def along_rows(self, values: Tensor) -> Tensor:
        """One value per output, shaped to multiply the weight."""
        return values[:, None]

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to `weight` (computed in float32) and keep the original for a bit-exact `unmerge`.

        Raises:
            ValueError: The sum is not finite in the weight's dtype.
        """
        if self.merged:
            return
        merged = self.merged_weight().to(self.weight.dtype)
        if not torch.isfinite(merged).all():
            raise ValueError(f"merging gives weights that are not finite in {self.weight.dtype}")
        if is_packed(self.weight):  # quantised: merging in its few bits would lose most of the update
            self.register_buffer("lora_original", self.weight.detach(), persistent=False)
            self.weight = nn.Parameter(merged, requires_grad=False)
        else:
            self.register_buffer("lora_original", self.weight.detach().clone(), persistent=False)
            self.weight.copy_(like(merged, self.weight))

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the original weight back, bit for bit."""
        if self.merged:
            if is_packed(self.lora_original):
                self.weight = nn.Parameter(self.lora_original, requires_grad=False)
            else:
                self.weight.copy_(self.lora_original)
            self.register_buffer("lora_original", None, persistent=False)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """Write the unmerged form always, so that a saved update can never be applied twice on loading."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.merged:
            destination[f"{prefix}weight"] = self.lora_original

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: Any) -> None:
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

    def base_output(self, x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight, in_dtype_of(x, self.bias))

    def bare_output(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)

    def update_output(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return linear(linear(x, in_dtype_of(x, A)), in_dtype_of(x, B))

    def adapted_output(self, x: Tensor) -> Tensor:
        y = fused_output(self, x, self.weight)
        return super().adapted_output(x) if y is None else y


def fused_output(layer: LoRALayer, x: Tensor, weight: Tensor) -> Tensor | None:
    """The output of a linear layer with this weight (out, in) and its update, or None where only plain operations do.

    While training in float32 a batch large enough is multiplied by the sum of weight and update. Otherwise the update's
    output is added; then the bits are those of PEFT's operations, if there is no dropout.
    """
    if layer.lora_magnitude is not None or not can_fuse(x, weight, layer.lora_A):
        return None
    dropout = layer.lora_dropout if layer.training else 0.0
    start = None if layer.lora_start_A is None else (layer.lora_start_A, layer.lora_start_B)
    summable = (  # weight and updates: the bits are others, and a sum in bfloat16 would round small updates away
        layer.training
        and torch.is_grad_enabled()
        and x.dtype == weight.dtype == layer.lora_A.dtype == torch.float32
        and not torch.is_autocast_enabled(x.device.type)
    )
    if start and not summable:
        return None
    merged = summable and not dropout and merging_pays(x.numel() // x.shape[-1], x.shape[-1], weight.shape[0])
    return lora_linear(
        x, weight, layer.bias, layer.lora_A, layer.lora_B, layer.scaling, dropout, layer.fused, start, merged
    )


class LoRAEmbedding(LoRALayer, nn.Embedding):
    """A frozen table plus a trainable update: y = W[i] + scale·Aᵀ[i]Bᵀ. A starts at zero; dropout does not apply.

    Shape:
        i (...) -> (..., embedding_dim); lora_A (r, num_embeddings); lora_B (embedding_dim, r).
    """

    base_class = nn.Embedding

    def base_output(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._look_up(x, weight)

    def _look_up(self, x: Tensor, table: Tensor) -> Tensor:
        return F.embedding(x, table, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)

    def _update(self, x: Tensor, y: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return F.linear(self._look_up(x, in_dtype_of(y, A).T), in_dtype_of(y, B))

    def add_update(self, x: Tensor, y: Tensor) -> Tensor:
        update = self._update(x, y, self.lora_A, self.lora_B)
        if self.lora_start_A is not None:
            update = update - self._update(x, y, self.lora_start_A, self.lora_start_B)
        if self.lora_magnitude is None:
            return (y + update * self.scaling).to(y.dtype)  # under autocast the update alone is in lower precision
        factor = self.magnitude_factor()
        return (factor * y + factor * update * self.scaling).to(y.dtype)

    def product(self, A: Tensor, B: Tensor) -> Tensor:
        return A.float().T @ B.float().T

    def output_norms(self, weight: Tensor) -> Tensor:
        return torch.linalg.norm(weight, dim=0)

    def along_rows(self, values: Tensor) -> Tensor:
        return values


class LoRAConv2d(LoRALayer, nn.Conv2d):
    """A frozen convolution plus a trainable update: A convolves like the layer itself, B is 1 x 1.

    Shape:
        x (..., in, height, width) -> (..., out, height', width'); lora_A (r, in, *kernel); lora_B (out, r, 1, 1).
    """

    base_class = nn.Conv2d

    def base_output(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, in_dtype_of(x, self.bias))

    def update_output(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return F.conv2d(self._conv_forward(x, in_dtype_of(x, A), None), in_dtype_of(x, B))

    def along_outputs(self, values: Tensor) -> Tensor:
        return values.reshape(-1, 1, 1)

    def product(self, A: Tensor, B: Tensor) -> Tensor:
        return (B.float().flatten(1) @ A.float().flatten(1)).view(self.weight.shape)

    def output_norms(self, weight: Tensor) -> Tensor:
        return weight.norm(p=2, dim=(1, 2, 3), keepdim=True).transpose(1, 0)

    def along_rows(self, values: Tensor) -> Tensor:
        return values.reshape(-1, 1, 1, 1)


@cache
def _lora_conv1d() -> type[LoRALayer]:
    """`LoRAConv1D`, made when first needed because its base class is transformers'."""
    from transformers.pytorch_utils import Conv1D

    class LoRAConv1D(LoRALayer, Conv1D):
        """GPT-2's linear layer, whose weight is stored transposed, plus a trainable update.

        Shape:
            x (..., nx) -> (..., nf); weight (nx, nf); lora_A (r, nx); lora_B (nf, r).
        """

        base_class = Conv1D

        def base_output(self, x: Tensor, weight: Tensor) -> Tensor:
            y = torch.addmm(in_dtype_of(x, self.bias), x.reshape(-1, x.size(-1)), weight)
            return y.view(*x.shape[:-1], self.nf)

        def bare_output(self, x: Tensor) -> Tensor:
            return x @ self.weight

        def update_output(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
            return F.linear(F.linear(x, in_dtype_of(x, A)), in_dtype_of(x, B))

        def adapted_output(self, x: Tensor) -> Tensor:
            y = fused_output(self, x, self.weight.T)
            return super().adapted_output(x) if y is None else y

        def product(self, A: Tensor, B: Tensor) -> Tensor:
            return (B.float() @ A.float()).T

        def output_norms(self, weight: Tensor) -> Tensor:
            return torch.linalg.norm(weight, dim=0)

        def along_rows(self, values: Tensor) -> Tensor:
            return values

    LoRAConv1D.__qualname__ = "LoRAConv1D"  # pickle finds it as lorakit.nn.layers.LoRAConv1D
    return LoRAConv1D


def __getattr__(name: str) -> Any:
    if name == "LoRAConv1D":
        return _lora_conv1d()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


LORA_CLASS: dict[type[nn.Module], type[LoRALayer]] = {
    nn.Linear: LoRALinear,
    nn.Embedding: LoRAEmbedding,
    nn.Conv2d: LoRAConv2d,
}
"""The LoRA form of each kind of layer that can carry an update; Conv1D's is made when first met."""


def lora_class(module: nn.Module) -> type[LoRALayer] | None:
    """The LoRA form for exactly this kind of layer, else None (a subclass may compute something else)."""
    kind = type(module)
    if isinstance(module, LoRALayer):
        return kind
    if f"{kind.__module__}.{kind.__qualname__}" == CONV1D:
        return _lora_conv1d()
    if isinstance(module, nn.Conv2d) and module.groups > 1 or isinstance(module, nn.Embedding) and module.max_norm:
        return None  # BA is no grouped kernel; max_norm rescales rows in place, frozen or not
    return LORA_CLASS.get(kind)


def update_shapes(module: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of A and B of rank r for this layer."""
    if isinstance(module, nn.Embedding):
        return (r, module.num_embeddings), (module.embedding_dim, r)
    if isinstance(module, nn.Conv2d):
        return (r, module.in_channels, *module.kernel_size), (module.out_channels, r, 1, 1)
    if isinstance(module, nn.Linear):
        return (r, module.in_features), (module.out_features, r)
    return (r, module.nx), (module.nf, r)


def magnitude_shape(module: nn.Module) -> tuple[int, ...]:
    """Shape of the DoRA magnitude of this layer: one value per output."""
    outputs = update_shapes(module, 1)[1][0]
    return (1, outputs, 1, 1) if isinstance(module, nn.Conv2d) else (outputs,)


def attach(module: nn.Module, update: Update, lora_dropout: float, use_dora: bool = False) -> None:
    """Turn `module` into its LoRA form in place.

    Args:
        module: A layer for which `lora_class` has a form.
        update: Its values; a missing DoRA magnitude starts at the adapted weight's own norms.
        lora_dropout: Probability in [0, 1) of zeroing an input of the update.
        use_dora: Train a magnitude per output.
    """
    form = lora_class(module)
    assert form is not None, f"{type(module).__name__} has no LoRA form"
    module.__class__ = form
    module.lora_off, module.lora_dropout = False, float(lora_dropout)
    module.register_buffer("lora_original", None, persistent=False)
    module.register_parameter("lora_magnitude", None)
    set_update(module, update)
    if use_dora and update.magnitude is None:
        module.lora_magnitude = nn.Parameter(module.adapted_norms())


@torch.no_grad()
def set_update(layer: LoRALayer, update: Update) -> None:
    """Give the layer other values: into the same parameters where the shapes agree, else into new ones."""
    for name, value in (("lora_A", update.A), ("lora_B", update.B), ("lora_magnitude", update.magnitude)):
        old = getattr(layer, name, None)
        if old is not None and value is not None and old.shape == value.shape:
            old.copy_(value)
        else:
            new = value.detach().to(layer.weight.device, torch.float32, copy=True) if value is not None else None
            layer.register_parameter(name, None if new is None else nn.Parameter(new))
    layer.r, layer.lora_alpha, layer.scaling = len(update.A), update.lora_alpha, update.scaling
    layer.fused = layer.r > 1 and math.frexp(update.scaling)[0] == 0.5  # r = 1 is a rank-1 update: fused multiply-add
    start_A, start_B = update.start or (None, None)
    layer.register_buffer("lora_start_A", start_A, persistent=False)
    layer.register_buffer("lora_start_B", start_B, persistent=False)


def detach(module: LoRALayer) -> None:
    """Take the LoRA form off again: class, attributes and parameters as they were; `weight` stays as it is."""
    for name in ("lora_A", "lora_B", "lora_magnitude", "lora_original", "lora_start_A", "lora_start_B"):
        delattr(module, name)
    module._non_persistent_buffers_set -= {"lora_original", "lora_start_A", "lora_start_B"}
    for name in ("r", "lora_alpha", "scaling", "fused", "lora_dropout", "lora_off"):
        delattr(module, name)
    module.__class__ = module.base_class


def plain_weight(module: nn.Module) -> Tensor:
    """The layer's untouched weight; a quantised one is unpacked."""
    weight = getattr(module, "lora_original", None)
    weight = module.weight if weight is None else weight
    return unpacked(whole(weight))


def unpacked(weight: Tensor) -> Tensor:
    """The weight's values where torchao has quantised it, else itself."""
    if not is_packed(weight):
        return weight
    return weight.get_original_weight() if hasattr(weight, "get_original_weight") else weight.dequantize()


def is_packed(weight: Tensor) -> bool:
    """Whether the weight is one of torchao's quantised tensors."""
    return type(weight.data).__module__.startswith("torchao.")


def in_dtype_of(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    """`parameter` in x's dtype (casting x up would double its memory); as it is under autocast, which casts both."""
    if parameter is None or parameter.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
        return parameter
    return parameter.to(x.dtype)


@torch.library.custom_op("lorakit::gradient_while_merged", mutates_args=())
def _gradient_while_merged(parameter: Tensor, grad: Tensor) -> Tensor:
    """`parameter`'s gradient: none. An operation, because torch.compile runs a plain `raise` while it traces."""
    raise RuntimeError(
        "backward through a merged LoRA layer: a merged update gets no gradient, so nothing would be trained; "
        "call unmerge_lora(model) before training"
    )


@_gradient_while_merged.register_fake
def _(parameter: Tensor, grad: Tensor) -> Tensor:
    return torch.empty_like(parameter)


class _RefuseBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, parameter: Tensor) -> Tensor:
        ctx.save_for_backward(parameter)
        return no_view(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, _gradient_while_merged(*ctx.saved_tensors, grad)


def refuse_backward(y: Tensor, parameter: Tensor) -> Tensor:
    """`y` itself; a backward pass that reaches it raises, where otherwise `parameter` would silently learn nothing."""
    return _RefuseBackward.apply(y, parameter) if torch.is_grad_enabled() and parameter.requires_grad else y
