"""How names match suffixes and patterns, and the error for a name that matches nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lorakit.adapters.names import (
    listing,
    name_matches,
    named_modules,
    named_parameters,
    named_tensors,
    submodule,
    unmatched,
)
from lorakit.lora import apply_lora

NAMES = st.lists(st.sampled_from(["query", "xquery", "dense", "attn", "0", "1", "layer"]), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(NAMES, NAMES)
def test_suffixes_match_only_complete_parts(name: list[str], suffix: list[str]) -> None:
    assert name_matches(".".join(name), ".".join(suffix)) == (name[-len(suffix) :] == suffix)


def test_modules_to_save_and_adapter_names_match_only_complete_parts() -> None:
    """PEFT's `endswith` takes aux_classifier for classifier, and finds an adapter "a" in any parameter's name."""

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.classifier, self.aux_classifier = (nn.Linear(3, 3) for _ in range(3))

    model = apply_lora(TwoHeads(), r=2, target_modules=["up"], modules_to_save=["classifier"], adapter_name="a")
    apply_lora(model, r=2, target_modules=["up"], modules_to_save=["classifier"], adapter_name="p")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"up.lora_A", "up.lora_B", "classifier.weight", "classifier.bias"}
    assert set(model.state_dict()) == set(TwoHeads().state_dict()) | {"up.lora_A", "up.lora_B"}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("quary", "target_modules 'quary' matches nothing in this model; did you mean 'query'? It has: query, value"),
        ("zzz", "target_modules 'zzz' matches nothing in this model; it has: query, value"),
    ],
)
def test_the_error_suggests_close_names_and_lists_each_once(wanted: str, message: str) -> None:
    error = unmatched("target_modules", wanted, iter(["query", "value", "query"]))
    assert isinstance(error, ValueError) and str(error) == message


@settings(max_examples=50, deadline=None, derandomize=True)
@given(names=st.lists(st.sampled_from("abcdef"), unique=True), limit=st.integers(1, 4))
def test_a_listing_shows_or_counts_every_name(names: list[str], limit: int) -> None:
    text = listing(names, limit)
    shown = text.partition(", …")[0].split(", ") if names else []
    assert shown == names[:limit]
    assert ("more" in text) == (len(names) > limit)
    if len(names) > limit:
        assert text.endswith(f"… ({len(names) - limit} more)")
    if not names:
        assert text == "nothing"


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch.compile's own import
def test_names_are_those_of_the_model_without_wrappers() -> None:
    plain = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    wrapped = nn.Sequential(torch.compile(plain[0]), checkpoint_wrapper(torch.compile(plain[1])))
    assert any("_orig_mod" in name for name, _ in wrapped.named_parameters())
    assert dict(named_parameters(wrapped)) == dict(plain.named_parameters())
    assert named_tensors(wrapped).keys() == plain.state_dict().keys()
    inner = {name: module for name, module in plain.named_modules() if name}
    assert {name: module for name, module in named_modules(wrapped) if name} == inner
    assert all(submodule(wrapped, name) is module for name, module in inner.items())
