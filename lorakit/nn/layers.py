"""The adapted layers: a frozen layer plus a trainable low-rank update, y = base(x) + scaling·B·A·dropout(x).

A layer becomes its LoRA form by class swap (`module.__class__ = LoRALinear`). It stays the same object, so its hooks,
its parameters' names and identities, and every reference to it (shared modules, optimizers) stay valid.

`LoRALinear.reference_forward` is the paper's formula, line by line. `forward` computes the same, fused where
`functional.choose_path` says so.
"""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorakit.nn.functional import choose_path, fused_forward
from lorakit.nn.kernels import linear, no_view
from lorakit.nn.weights import Update, is_adaptable, is_adapted, is_quantized, like, plain_weight, whole, widened


class LoRALayer(nn.Module):
    """What all adapted layers share: A, B, a scale, and the states active, off and merged.

    `lora_A` and `lora_B` are float32 parameters beside the layer's own. The update is cast to the input's dtype, never
    the input to the update's. Dropout acts on the update's input only, follows `training` and draws from torch's
    default generator (a private one would not be restored when gradient checkpointing reruns the forward).

    With DoRA (arXiv:2402.09353) the adapted weight W + scale·BA is rescaled so that each output's norm is the trained
    `lora_magnitude`; the norm it is divided by counts as a constant in backward (§4.3). With PiSSA and OLoRA the weight
    is untouched and the update is counted from its start: scale·(BA - B₀A₀).
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
    one_addmm: bool  # whether one addmm gives the bits of separate operations
    lora_dropout: float
    lora_off: bool  # True inside disable_lora(): compute what the untouched layer computes

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        if self.lora_off or self.lora_original is not None:
            return self.unadapted_forward(x, *rest)
        return self.reference_forward(x, *rest)

    def unadapted_forward(self, x: Tensor, *rest: Any) -> Tensor:
        """The output while the update is off, or part of the weight."""
        y = self.base_output(x, self.base_weight(), *rest)
        return y if self.lora_off else refuse_backward(y, self.lora_A)

    def reference_forward(self, x: Tensor, *rest: Any) -> Tensor:
        """The adapted output in plain operations."""
        return self.add_update(x, self.base_output(x, self.weight, *rest))

    def base_output(self, x: Tensor, weight: Tensor) -> Tensor:
        """What the layer computes with this weight and its own bias."""
        raise NotImplementedError

    def update_output(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """BA applied to x, unscaled, in x's dtype."""
        raise NotImplementedError

    def drop(self, x: Tensor) -> Tensor:
        """The update's input: x with dropout in training mode."""
        return F.dropout(x, self.lora_dropout) if self.lora_dropout and self.training else x

    def add_update(self, x: Tensor, y: Tensor) -> Tensor:
        """Add the update's output to the layer's own output y: plain, counted from a start, or DoRA's."""
        dropped = self.drop(x)
        update = self.update_output(dropped, self.lora_A, self.lora_B)
        if self.lora_start_A is not None:
            update = update - self.update_output(x, self.lora_start_A, self.lora_start_B)
        if self.lora_magnitude is None:
            return y + update * self.scaling
        # added in PEFT's order, here and in the other layers: the same adapter gives the same bits
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
        """The weight to compute with: the original one if the update is merged but off.

        FSDP gathers a sharded weight from `weight`, and `disable_lora` has put the original values there.
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
        """Weight plus update, float32."""
        weight = plain_weight(self).float() + self.delta_weight()
        return weight if self.lora_magnitude is None else weight * self.along_rows(self.magnitude_factor())

    def along_rows(self, values: Tensor) -> Tensor:
        """One value per output, shaped to multiply the weight."""
        return values[:, None]

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to `weight`, in float32, and keep the original for a bit-exact `unmerge`.

        Raises:
            ValueError: the sum is not finite in the weight's dtype.
        """
        if self.merged:
            return
        merged = self.merged_weight().to(self.weight.dtype)
        if not torch.isfinite(merged).all():
            raise ValueError(f"merging gives weights that are not finite in {self.weight.dtype}")
        if is_quantized(self.weight):  # its few bits would lose most of the update
            self.register_buffer("lora_original", self.weight.detach(), persistent=False)
            self.weight = nn.Parameter(merged, requires_grad=False)
        else:
            self.register_buffer("lora_original", self.weight.detach().clone(), persistent=False)
            self.weight.copy_(like(merged, self.weight))

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the original weight back, bit for bit."""
        if self.merged:
            if is_quantized(self.lora_original):
                self.weight = nn.Parameter(self.lora_original, requires_grad=False)
            else:
                self.weight.copy_(self.lora_original)
            self.register_buffer("lora_original", None, persistent=False)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        """Save the unmerged weight even while merged, so that loading cannot apply the update twice."""
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
    """A frozen linear layer plus a trainable update: y = xWᵀ + b + scaling·dropout(x)AᵀBᵀ (arXiv:2106.09685, §4.1).

    B starts at zero, so a new layer computes exactly what its base did. `scaling` is lora_alpha/r, or lora_alpha/√r
    with rsLoRA. Made by `apply_lora`, not constructed: the layer in your model changes its class.

    Example:
        import torch

        net = torch.nn.Sequential(torch.nn.Linear(16, 4))
        lorakit.apply_lora(net, r=2, target_modules=["0"])
        print(net[0])  # LoRALinear(in_features=16, out_features=4, bias=True, r=2, lora_alpha=32, lora_dropout=0)
        print(tuple(net[0].lora_A.shape), tuple(net[0].lora_B.shape))  # (2, 16) (4, 2)

    Attributes:
        lora_A, lora_B: the trained factors, float32.
        r: rank. lora_alpha, scaling: what BA is multiplied by. lora_dropout: a probability, in training mode.

    Shape:
        x (..., in_features) -> (..., out_features); lora_A (r, in_features); lora_B (out_features, r).
    """

    base_class = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        if self.lora_off or self.lora_original is not None:
            return self.unadapted_forward(x)
        path = choose_path(self, x, self.weight)
        return self.reference_forward(x) if path == "plain" else fused_forward(self, x, self.weight, path)

    def reference_forward(self, x: Tensor) -> Tensor:
        if self.lora_start_A is not None or self.lora_magnitude is not None:
            return super().reference_forward(x)  # PiSSA's or OLoRA's start, or DoRA
        y = self.base_output(x, self.weight)  # xWᵀ + b
        update = self.update_output(self.drop(x), self.lora_A, self.lora_B)  # xAᵀBᵀ, by way of (..., r)
        return y + update * self.scaling

    def base_output(self, x: Tensor, weight: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):  # which would cast a widened weight back
            weight = widened(weight, x.dtype)
        return linear(x, weight, in_dtype_of(x, self.bias))

    def bare_output(self, x: Tensor) -> Tensor:
        return linear(x, widened(self.weight, x.dtype))

    def update_output(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        return linear(linear(x, in_dtype_of(x, A)), in_dtype_of(x, B))


class LoRAEmbedding(LoRALayer, nn.Embedding):
    """A frozen embedding table plus a trainable update: y = W[i] + scale·Aᵀ[i]Bᵀ. A starts at zero; no dropout.

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
            return (y + update * self.scaling).to(y.dtype)  # under autocast only the update is in lower precision
        factor = self.magnitude_factor()
        return (factor * y + factor * update * self.scaling).to(y.dtype)

    def product(self, A: Tensor, B: Tensor) -> Tensor:
        return A.float().T @ B.float().T

    def output_norms(self, weight: Tensor) -> Tensor:
        return torch.linalg.norm(weight, dim=0)

    def along_rows(self, values: Tensor) -> Tensor:
        return values


class LoRAConv2d(LoRALayer, nn.Conv2d):
    """A frozen convolution plus a trainable update: A convolves like the layer itself, B is a 1 × 1 convolution.

    Shape:
        x (..., in, height, width) -> (..., out, height', width'); lora_A (r, in, *kernel); lora_B (out, r, 1, 1).
    """

    base_class = nn.Conv2d

    def base_output(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, widened(weight, x.dtype), in_dtype_of(x, self.bias))

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
    """Define `LoRAConv1D` on first use: its base class is transformers', which this file does not import."""
    from transformers.pytorch_utils import Conv1D

    class LoRAConv1D(LoRALayer, Conv1D):
        """GPT-2's linear layer, which stores its weight transposed, plus a trainable update.

        Shape:
            x (..., nx) -> (..., nf); weight (nx, nf); lora_A (r, nx); lora_B (nf, r).
        """

        base_class = Conv1D

        def __repr__(self) -> str:  # transformers' own ignores extra_repr
            return f"LoRAConv1D(nf={self.nf}, nx={self.nx}{self.extra_repr()})"

        def base_output(self, x: Tensor, weight: Tensor) -> Tensor:
            y = torch.addmm(in_dtype_of(x, self.bias), x.reshape(-1, x.size(-1)), widened(weight, x.dtype))
            return y.view(*x.shape[:-1], self.nf)

        def bare_output(self, x: Tensor) -> Tensor:
            return x @ widened(self.weight, x.dtype)

        def update_output(self, x: Tensor, A: Tensor, B: Tensor) -> Tensor:
            return F.linear(F.linear(x, in_dtype_of(x, A)), in_dtype_of(x, B))

        def forward(self, x: Tensor) -> Tensor:
            if self.lora_off or self.lora_original is not None:
                return self.unadapted_forward(x)
            path = choose_path(self, x, self.weight.T)
            return self.reference_forward(x) if path == "plain" else fused_forward(self, x, self.weight.T, path)

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


def lora_class(module: nn.Module) -> type[LoRALayer] | None:
    """The LoRA form of this layer; None where `is_adaptable` says it has none."""
    if not is_adaptable(module):
        return None
    if is_adapted(module):
        return type(module)
    forms = {nn.Linear: LoRALinear, nn.Embedding: LoRAEmbedding, nn.Conv2d: LoRAConv2d}
    return forms.get(type(module)) or _lora_conv1d()


def attach(module: nn.Module, update: Update, lora_dropout: float, use_dora: bool = False) -> None:
    """Turn a layer into its LoRA form, in place.

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
    """Give the layer another update: in the same parameters if the shapes agree, otherwise in new ones."""
    for name, value in (("lora_A", update.A), ("lora_B", update.B), ("lora_magnitude", update.magnitude)):
        old = getattr(layer, name, None)
        if old is not None and value is not None and old.shape == value.shape:
            old.copy_(value)
        else:
            new = value.detach().to(layer.weight.device, torch.float32, copy=True) if value is not None else None
            layer.register_parameter(name, None if new is None else nn.Parameter(new))
    layer.r, layer.lora_alpha = len(update.A), update.lora_alpha
    set_scaling(layer, update.scaling)
    start_A, start_B = update.start or (None, None)
    layer.register_buffer("lora_start_A", start_A, persistent=False)
    layer.register_buffer("lora_start_B", start_B, persistent=False)


def set_scaling(layer: LoRALayer, scaling: float) -> None:
    """Set what the layer's BA is multiplied by."""
    layer.scaling = scaling
    # with r = 1 addmm fuses multiply and add; with a scaling that is not a power of two it rounds once less
    layer.one_addmm = layer.r > 1 and math.frexp(scaling)[0] == 0.5


def detach(module: LoRALayer) -> None:
    """Turn the layer back into its base class, without the update's attributes; `weight` stays as it is."""
    for name in ("lora_A", "lora_B", "lora_magnitude", "lora_original", "lora_start_A", "lora_start_B"):
        delattr(module, name)
    module._non_persistent_buffers_set -= {"lora_original", "lora_start_A", "lora_start_B"}
    for name in ("r", "lora_alpha", "scaling", "one_addmm", "lora_dropout", "lora_off"):
        delattr(module, name)
    module.__class__ = module.base_class


def in_dtype_of(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    """Cast `parameter` to x's dtype (casting x up would double its memory); autocast casts both by itself."""
    if parameter is None or parameter.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
        return parameter
    return parameter.to(x.dtype)


@torch.library.custom_op("lorakit::gradient_while_merged", mutates_args=())
def _gradient_while_merged(parameter: Tensor, grad: Tensor) -> Tensor:
    """Raise in backward; a custom operator because torch.compile would run a plain `raise` while tracing."""
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
    """Return `y`; a backward pass that reaches it raises, because `parameter` would silently learn nothing."""
    return _RefuseBackward.apply(y, parameter) if torch.is_grad_enabled() and parameter.requires_grad else y
