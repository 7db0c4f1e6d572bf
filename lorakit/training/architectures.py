"""How each architecture takes packed rows: the masks it needs, and the part of it that gets them.

Nothing here is trusted: `lorakit.training.layout` proves each choice on the model before it is used.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lorakit.data.masks import BLOCK_MASK, Masks

WINDOWS = ("sliding_window", "local_attention", "window_size", "attention_window", "attention_chunk_size")

MIXING = {  # what mixes neighbouring tokens outside attention, so that sentences cannot share a row
    "canine": "its convolutions pool neighbouring characters",
    "convbert": "its convolutions mix neighbouring tokens",
    "fnet": "its Fourier transform mixes all tokens of a row",
    "funnel": "it pools neighbouring tokens",
    "longformer": "its attention works on chunks of a row",
    "mobilebert": "its embeddings join neighbouring tokens",
    "mra": "its attention works on blocks of a row",
    "nystromformer": "its attention works on landmarks of a row",
    "yoso": "its convolutions and hashes mix the tokens of a row",
}


@dataclass(frozen=True)
class Part:
    """The part of a model that gets the block mask, where the model itself takes only a mask of padding.

    Attributes:
        name: of modules below the base model: "encoder", or "layers." for every layer of a list.
        argument: of their forward.
        square: without a dimension for heads.
        boolean: True where a query sees a key, also with eager attention.
    """

    name: str
    argument: str = "attention_mask"
    square: bool = False
    boolean: bool = False


PARTS = {
    "bloom": Part("h."),  # the model makes its ALiBi from the mask of padding; only differences of positions matter
    "deberta": Part("encoder", boolean=True),
    "deberta-v2": Part("encoder", boolean=True),
    "esm": Part("encoder"),
    "flaubert": Part("attentions.", "mask", square=True, boolean=True),
    "layoutlm": Part("encoder"),
    "markuplm": Part("encoder"),
    "ultrabert": Part("layers."),
    "xlm": Part("attentions.", "mask", square=True, boolean=True),
}


def mixing_reason(model: nn.Module) -> str | None:
    """Why sentences cannot share a row of this model, where that is known."""
    config = model.config
    if config.model_type == "deberta-v2" and getattr(config, "conv_kernel_size", 0):
        return "its convolution mixes neighbouring tokens"
    return MIXING.get(config.model_type)


def mask_candidates(model: nn.Module) -> list[Masks]:
    """The masks that may suit a model, in the order in which to try them."""
    config = model.config
    additive = model.dtype if config._attn_implementation == "eager" else None
    part = PARTS.get(config.model_type)
    if config.model_type == "xlnet":
        return [Masks(argument="perm_mask")]
    if part:
        argument, additive = BLOCK_MASK, None if part.boolean else additive
    else:
        argument = "attention_mask"
    return [Masks(causal, _reach(config, causal), additive, argument) for causal in (False, True)]


def longest_reach(model: nn.Module) -> int | None:
    """The widest window in which the model's configuration says that it attends; None without windows."""
    config = model.config
    found = [getattr(config, name, None) for name in WINDOWS]
    numbers = [value for value in found if isinstance(value, int) and value > 0]
    return max(numbers, default=None)


def _reach(config: Any, causal: bool) -> tuple[tuple[str | None, int | None], ...]:
    """The reach of each kind of layer, by the convention of transformers.masking_utils."""
    window = getattr(config, "sliding_window", None)
    if window is None:
        return ((None, None),)
    near = window - 1 if causal else window  # a causal window counts the token itself
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # as in Mistral: one window for all layers
        return ((None, near),)
    reach = {"full_attention": None, "sliding_attention": near}
    used = dict.fromkeys(kinds)
    if not used.keys() <= reach.keys():
        return ((None, None),)
    if len(used) == 1:
        return tuple((None, reach[kind]) for kind in used)
    return tuple(reach.items())


# Handing masks over --------------------------------------------------------------------------------------------------


@contextmanager
def block_masks(model: nn.Module) -> Iterator[None]:
    """While active, the model takes the masks of `mask_candidates`, in whatever part of it they are used."""
    with _handing_over(model), _dense(model):
        yield


class _HandOver:
    """Takes the block mask from the model's arguments, and gives it to the parts that need it."""

    def __init__(self) -> None:
        self.mask: Tensor | dict[str, Tensor] | None = None

    def take(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        self.mask = kwargs.get(BLOCK_MASK)
        return args, {name: value for name, value in kwargs.items() if name != BLOCK_MASK}

    def giving(self, module: nn.Module, part: Part, kind: str | None) -> Callable[..., Any]:
        place = list(inspect.signature(module.forward).parameters).index(part.argument)

        def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
            if self.mask is None:  # plain rows
                return None
            mask = self.mask[kind] if isinstance(self.mask, dict) else self.mask
            mask = mask.squeeze(1) if part.square else mask
            if len(args) > place:
                return (*args[:place], mask, *args[place + 1 :]), kwargs
            return args, {**kwargs, part.argument: mask}

        return give


@contextmanager
def _handing_over(model: nn.Module) -> Iterator[None]:
    """While active, the part of the model that needs the block mask gets it."""
    part = PARTS.get(model.config.model_type) if hasattr(model, "base_model") else None
    if part is None or any(isinstance(_owner(hook), _HandOver) for hook in model._forward_pre_hooks.values()):
        yield  # nothing to do, or an evaluation within training
        return
    hand = _HandOver()
    handles = [model.register_forward_pre_hook(hand.take, with_kwargs=True)]
    kinds = getattr(model.config, "layer_types", None)
    for number, module in enumerate(_modules(model, part)):
        give = hand.giving(module, part, kinds[number] if kinds else None)
        handles.append(module.register_forward_pre_hook(give, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _owner(hook: Callable[..., Any]) -> object:
    return getattr(hook, "__self__", None)


def _modules(model: nn.Module, part: Part) -> list[nn.Module]:
    found = getattr(model, "base_model", model).get_submodule(part.name.rstrip("."))
    return list(found) if part.name.endswith(".") else [found]


@contextmanager
def _dense(model: nn.Module) -> Iterator[None]:
    """While active, BigBird attends densely, as transformers makes it do for good after one batch of short rows."""
    base = getattr(model, "base_model", None)  # a user's own module may have a config alone
    if model.config.model_type != "big_bird" or base is None or base.attention_type == "original_full":
        yield
        return
    base.set_attention_type("original_full")
    try:
        yield
    finally:
        base.set_attention_type("block_sparse")
