"""transformers' `save_pretrained` of an adapted model, so that the folder computes what the model does.

The method writes a state_dict: the base under its own names beside `lora_A` and `lora_B`, which `from_pretrained` would
leave out. So a merged model writes its merged weights instead, and an unmerged one also writes the adapter's files into
the same folder. transformers (with PEFT installed), PEFT and lorakit find the adapter there; the Trainer, whose
checkpoints are written this way, still finds every tensor of the model and resumes.
"""

import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lorakit.adapters.adapter import STATE, lora_layers
from lorakit.adapters.merging import merged_state
from lorakit.nn.weights import is_sharded

SAVE = "save_pretrained"
"""The method, which an adapted model has as an attribute of its own."""


class Saving:
    """`save_pretrained` of one adapted model. It holds no reference to the model, which is freed as before.

    Args:
        model: an adapted transformers model.
        save_adapter: `lorakit.save_adapter`.
    """

    def __init__(self, model: nn.Module, save_adapter: Callable[[nn.Module, Path], object]) -> None:
        self._model, self._save_adapter = weakref.ref(model), save_adapter

    def __call__(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> Any:
        model = self._model()
        if push_to_hub:
            raise ValueError(
                "save_pretrained(push_to_hub=True) would upload the folder before the adapter is in it; call"
                " model.push_to_hub(name), or save and then run: hf upload name folder"
            )
        save = type(model).save_pretrained
        if any(layer.merged for _, layer in lora_layers(model)):
            state_dict = merged_state(model) if state_dict is None else state_dict
            return save(model, save_directory, is_main_process, state_dict, **options)
        done = save(model, save_directory, is_main_process, state_dict, **options)
        if is_main_process and not is_sharded(model):  # of a sharded one only the main rank calls
            try:
                self._save_adapter(model, Path(save_directory))
            except ValueError as error:  # FSDP1 holds the parameters in parts
                warnings.warn(
                    f"{save_directory} holds the base and LoRA's tensors, but no adapter: {error}", stacklevel=2
                )
        return done

    def __deepcopy__(self, memo: dict[int, Any]) -> "Saving":
        model = self._model()
        return Saving(memo.get(id(model), model), self._save_adapter)

    def __reduce__(self) -> tuple[Any, ...]:
        return Saving, (self._model(), self._save_adapter)


def save_adapted(model: nn.Module, save_adapter: Callable[[nn.Module, Path], object]) -> nn.Module:
    """Let an adapted model's `save_pretrained` write what the model computes; does nothing for another library's."""
    if hasattr(model, SAVE) and hasattr(model, STATE):
        model.__dict__[SAVE] = Saving(model, save_adapter)
    return model
