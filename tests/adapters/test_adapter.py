"""The record of a model's adapters: what it holds, and which tensors an adapter trains."""

import pytest
import torch
from torch import nn

from lorakit.adapters.adapter import captured, is_replicated, known, lora_layers, lora_state, trained_in_place, unwrap
from lorakit.adapters.config import LoRAConfig
from lorakit.adapters.initialization import new_adapter
from lorakit.lora import apply_lora
from tests.support.lora_models import tiny_roberta


def test_a_base_module_named_like_an_update_is_not_one() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lora_A = nn.Linear(3, 3)
            self.default = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.default(self.lora_A(x))

    model = apply_lora(Odd(), r=2, target_modules=["default"], bias="all")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"default.lora_A", "default.lora_B", "default.bias", "lora_A.bias"}


def test_unwrap_finds_the_model_inside_a_compiled_one() -> None:
    model = tiny_roberta()
    compiled = torch.compile(model, backend="eager")
    assert compiled is not model and unwrap(compiled) is unwrap(model) is model
    assert not is_replicated(compiled)


@pytest.mark.parametrize("ask", [lora_state, captured, lambda model: list(lora_layers(model))])
def test_a_model_without_lora_is_refused_by_its_class(ask) -> None:
    with pytest.raises(ValueError, match=r"this Linear has no LoRA; call apply_lora\(model\) or load_adapter first"):
        ask(nn.Linear(2, 2))


def test_captured_values_are_copies_of_what_is_trained() -> None:
    model = apply_lora(tiny_roberta(), bias="lora_only")
    adapter = captured(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {f"{name}.lora_{which}": getattr(u, which) for name, u in adapter.updates.items() for which in "AB"}
    found |= adapter.values
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[name], p) and found[name].data_ptr() != p.data_ptr() for name, p in trained.items())


@pytest.mark.parametrize(
    ("bias", "trained"),
    [
        ("none", {"head.weight", "head.bias"}),
        ("lora_only", {"head.weight", "head.bias", "up.bias"}),
        ("all", {"head.weight", "head.bias", "up.bias", "down.bias"}),
    ],
)
def test_bias_and_saved_modules_say_which_tensors_of_the_base_are_trained(bias: str, trained: set[str]) -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("up", "down", "head")})
    adapter = new_adapter(model, LoRAConfig(r=1, target_modules=["up"], bias=bias), saved=("head",))
    assert {name for name, _ in trained_in_place(model, adapter)} == trained


def test_buffers_of_a_saved_module_count_as_trained_if_they_are_persistent() -> None:
    model = nn.ModuleDict({"up": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2)})
    model["norm"].register_buffer("cache", torch.zeros(1), persistent=False)
    adapter = new_adapter(model, LoRAConfig(r=1, target_modules=["up"]), saved=("norm",))
    names = {name for name, _ in trained_in_place(model, adapter)}
    assert names == {f"norm.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


def test_an_unknown_adapter_is_refused_with_the_closest_name() -> None:
    state = lora_state(apply_lora(tiny_roberta(), adapter_name="genes"))
    known(state, "genes")
    with pytest.raises(ValueError, match="adapter 'gnes' matches nothing .* did you mean 'genes'"):
        known(state, "gnes")
