"""PEFT as an oracle: on the same base it adapts the same layers, trains the same parameters, computes the same bits.

Where the bits differ (sums in another order, half precision) both are compared with PEFT's own code in float64.
More cases, drawn at random: LORAKIT_CASES=600 python -m pytest tests/integration/test_peft_oracle.py -k drawn
"""

import copy
import os
import re
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.adapters.targets import DEFAULT_TARGETS, find_head
from lorakit.lora import apply_lora, combine_adapters, lora_layers, peft_total, set_adapter
from lorakit.nn.kernels import keep_mask
from lorakit.nn.weights import is_adaptable
from tests.support.architectures import ARCHITECTURES, inputs_for, output_of
from tests.support.lora_models import perturb

peft = pytest.importorskip("peft", reason="the oracle is the dev extra")
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*is_gradient_checkpointing.*:FutureWarning"
    ),  # PEFT calls what transformers left
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*"),  # PEFT's own
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*"),
    pytest.mark.filterwarnings("ignore:.*tied.*"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*"),
    pytest.mark.filterwarnings("ignore:r=.* is more than .* can use"),
]


CASES = os.environ.get("LORAKIT_CASES")
DTYPES = [torch.float32, torch.float32, torch.bfloat16, torch.float64]
ROUNDINGS = {
    torch.float32: 40 * 2**-24,  # the longest sum here has 40 terms (the vocabulary), and lorakit may reorder it
    torch.bfloat16: 16 * 2**-9,  # sums are kept in float32 and rounded once: 16 operations from input to output
    torch.float64: 40 * 2**-24,  # lorakit's updates and their gradients are float32 beside a base in any type
}
"""What rounding alone may change, relative to the largest value, beyond twice PEFT's own distance to float64."""


@pytest.fixture(autouse=True)
def no_kinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smooth activations: a rounding that moves an input of ReLU over 0 switches a gradient on or off."""
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: F.silu(x))


@pytest.fixture(autouse=True)
def no_model_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's model card, which nothing here reads, takes most of the time of saving."""
    monkeypatch.setattr(peft.PeftModel, "create_or_update_model_card", lambda *_: None)


def peft_twin(base: nn.Module, options: dict) -> nn.Module:
    """PEFT's model on a copy of the untouched base, for the arguments that ours is adapted with."""
    config = peft.LoraConfig(**options, modules_to_save=list(find_head(base)) or None)
    # in half precision PEFT casts the input up to float32 updates, lorakit the updates down to the input
    return peft.get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False).eval()


def our_name(theirs: str) -> str | None:
    """The name that we give a parameter of PEFT's model; None for its untrained second head."""
    if ".original_module." in theirs:
        return None
    name = theirs.removeprefix("base_model.model.")
    name = re.sub(r"\.lora_magnitude_vector\.default(\.weight)?$", ".lora_magnitude", name)
    name = re.sub(r"\.lora_(?:embedding_)?([AB])\.default(\.weight)?$", r".lora_\1", name)
    return name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")


class FastDropout(nn.Dropout):
    """Dropout by the mask that lorakit's linear layers draw: what they drop, PEFT drops too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        mask, factor = keep_mask(x, self.p)
        return x * mask * factor


def drop_alike(theirs: nn.Module, options: dict, dtype: torch.dtype) -> None:
    if "use_dora" in options or ("init_lora_weights" in options and dtype is not torch.float32):
        return  # plain operations and torch's dropout on both sides
    for module in theirs.modules():
        if isinstance(module, peft.tuners.lora.Linear):
            for name, dropout in module.lora_dropout.items():
                if isinstance(dropout, nn.Dropout):
                    module.lora_dropout[name] = FastDropout(dropout.p)


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def copy_into(theirs: nn.Module, ours: nn.Module) -> None:
    """Give PEFT's model the values of ours."""
    values = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        if our_name(name) and parameter.requires_grad:
            parameter.copy_(values[our_name(name)])


FACTORED = ("pissa", "olora")


def draw_options(data: st.DataObject, name: str, dtype: torch.dtype) -> dict:
    """Arguments that mean the same to both; None means each library's own default."""
    architecture = ARCHITECTURES[name]
    options: dict = {
        "r": data.draw(st.sampled_from([1, 2, 4, 8]), label="r"),
        "lora_alpha": data.draw(st.sampled_from([1, 2, 8, 5, 16.5]), label="alpha"),
        "lora_dropout": data.draw(st.sampled_from([0.0, 0.3]), label="dropout"),
        "bias": data.draw(st.sampled_from(["none", "all", "lora_only"]), label="bias"),
    }
    names = target_names(name)
    kind = data.draw(st.sampled_from(["default", "all-linear", "list", "regex", "layers"]), label="targets")
    drawn = sorted({data.draw(st.sampled_from(names), label="name") for _ in range(2)})
    if kind == "all-linear":
        options["target_modules"] = "all-linear"
    elif kind == "regex":
        options["target_modules"] = rf"(?:.*\.)?({'|'.join(drawn)})"
    elif kind == "list":
        options["target_modules"] = drawn
    else:
        options["target_modules"] = sorted(architecture.targets)
    if kind == "layers":
        options["layers_to_transform"] = [0]
    variant = data.draw(st.sampled_from(["plain", "rslora", "dora", "pissa", "olora", "patterns"]), label="variant")
    if variant == "rslora":
        options["use_rslora"] = True
    elif variant == "dora" and not (name == "vit" and dtype is torch.bfloat16):  # PEFT cannot: a convolution in bf16
        options["use_dora"] = True
    elif variant in FACTORED and kind in ("default", "layers") and dtype is not torch.float64:
        options["init_lora_weights"] = "pissa" if "gpt2" in name else variant  # PEFT's OLoRA forgets Conv1D's transpose
    elif variant == "patterns" and kind in ("default", "layers"):
        options |= {"rank_pattern": {architecture.targets[-1]: 3}, "alpha_pattern": {architecture.targets[0]: 7}}
    return options


@cache
def target_names(kind: str) -> list[str]:
    """Names of the layers outside the head that can be targeted by themselves, tied ones left out."""
    architecture = ARCHITECTURES[kind]
    model = architecture.build()
    weights = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found, refused = [], set(BYPASSED)
    for name, module in model.named_modules():
        outside = not any(name == head or name.startswith(f"{head}.") for head in architecture.head)
        if outside and is_adaptable(module) and weights[id(module.weight)] == 1:
            found.append(name.rpartition(".")[2])
        elif isinstance(module, nn.Embedding):
            refused.add(name.rpartition(".")[2])
    return sorted(set(found) - refused)


BYPASSED = {"rel_embeddings"}  # DeBERTa reads its weight


def train_step(model: nn.Module, inputs: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    """Output and gradients with dropout on; the masks are the same for every model and type."""
    torch.manual_seed(0)
    out = output_of(model.train(), inputs=inputs)
    out.to(torch.promote_types(out.dtype, torch.float32)).square().mean().backward()
    model.eval()
    names = ((our_name(n) or "", p) for n, p in model.named_parameters() if p.requires_grad)
    return out.detach(), {name: p.grad for name, p in names}


def distance(found: torch.Tensor, truth: torch.Tensor, scale: float = 0.0) -> float:
    """The largest difference, relative to the largest value."""
    difference = (found.double() - truth.double()).abs().max().item()
    return difference / max(scale, truth.abs().max().item()) if difference else 0.0


@settings(
    max_examples=int(CASES or 60),
    deadline=None,
    derandomize=CASES is None,
    phases=[Phase.explicit, Phase.generate],  # shrinking would take minutes
    suppress_health_check=list(HealthCheck),
)
@given(name=st.sampled_from(sorted(ARCHITECTURES)), dtype=st.sampled_from(DTYPES), data=st.data())
def test_targets_names_counts_outputs_gradients_and_files_equal_pefts_where_drawn(
    name: str, dtype: torch.dtype, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    options = draw_options(data, name, dtype)
    base = ARCHITECTURES[name].build().to(dtype)
    ours = apply_lora(copy.deepcopy(base), **options)
    theirs = peft_twin(base, options)

    assert [n for n, _ in lora_layers(ours)] == [
        n.removeprefix("base_model.model.")
        for n, m in theirs.named_modules()
        if isinstance(m, peft.tuners.lora.LoraLayer)
    ]
    assert trained_names(ours) == {our_name(n) for n in trained_names(theirs)} - {None}
    assert peft_total(ours) == sum(p.numel() for p in theirs.parameters())

    perturb(ours)
    copy_into(theirs, ours)
    drop_alike(theirs, options, dtype)
    exact = copy.deepcopy(theirs).double()
    inputs = inputs_for(base)
    wide = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}

    def near(found: torch.Tensor, peft_found: torch.Tensor, truth: torch.Tensor, what: str) -> None:
        limit = 2 * distance(peft_found, truth) + ROUNDINGS[dtype]
        assert distance(found, truth) <= limit, what

    (out, gradients), (peft_out, peft_gradients), (truth, true_gradients) = (
        train_step(model, x) for model, x in ((ours, inputs), (theirs, inputs), (exact, wide))
    )
    near(out, peft_out, truth, "output in training")
    assert {n for n, g in gradients.items() if g is None} == {n for n, g in peft_gradients.items() if g is None}
    names = [n for n, g in gradients.items() if g is not None]
    largest = max(true_gradients[n].abs().max().item() for n in names)
    peft_error = max(distance(peft_gradients[n], true_gradients[n], largest) for n in names)
    for parameter in names:
        error = distance(gradients[parameter], true_gradients[parameter], largest)
        assert error <= 2 * peft_error + ROUNDINGS[dtype], f"gradient of {parameter}: {error}, PEFT's {peft_error}"

    with torch.no_grad():
        out, peft_out, truth = (output_of(m, inputs=x) for m, x in ((ours, inputs), (theirs, inputs), (exact, wide)))
        near(out, peft_out, truth, "output in evaluation")
        same = dtype is torch.float32 and not {"init_lora_weights", "use_dora"} & options.keys()
        if same:
            assert torch.equal(out, peft_out)
        folder = tmp_path_factory.mktemp("files")
        read_by_peft = peft.PeftModel.from_pretrained(copy.deepcopy(base), save_adapter(ours, folder / "ours")).eval()
        theirs.save_pretrained(folder / "theirs")
        read_by_us = load_adapter(copy.deepcopy(base), folder / "theirs")
        for model, what in ((read_by_peft, "our file in PEFT"), (read_by_us, "PEFT's file in ours")):
            near(output_of(model, inputs=inputs), peft_out, truth, what)
            assert not same or torch.equal(output_of(model, inputs=inputs), out), what
        assert trained_names(read_by_us) == trained_names(ours)


@pytest.mark.parametrize("how", ["cat", "svd", "linear"])
def test_combinations_of_adapters_equal_pefts(how: str) -> None:
    base = ARCHITECTURES["roberta"].build()
    options = {"r": 2, "target_modules": ["query", "value"]}
    model = apply_lora(copy.deepcopy(base), **options, lora_alpha=3, modules_to_save=[], init_lora_weights=False)
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**options, lora_alpha=3))
    copy_into(theirs, model)
    apply_lora(
        model, **options, lora_alpha=8, modules_to_save=[], init_lora_weights=False, seed=1, adapter_name="second"
    )
    theirs.add_adapter("second", peft.LoraConfig(**options, lora_alpha=8))
    with torch.no_grad():
        for name, layer in lora_layers(model):
            other = theirs.base_model.model.get_submodule(name)
            other.lora_A["second"].weight.copy_(layer.lora_A)
            other.lora_B["second"].weight.copy_(layer.lora_B)
    weights = {"default": 0.7, "second": 0.4}
    theirs.add_weighted_adapter(list(weights), list(weights.values()), "both", combination_type=how)
    set_adapter(combine_adapters(model, weights, "both", how), "both")
    for name, layer in lora_layers(model):
        expected = theirs.base_model.model.get_submodule(name).get_delta_weight("both")
        torch.testing.assert_close(layer.delta_weight(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["roberta", "qwen2", "gpt2-lm", "t5", "bert-qa", "vit"])
def test_peft_loads_our_file_with_the_same_bits_and_without_a_warning(name: str, tmp_path: Path) -> None:
    base = ARCHITECTURES[name].build()
    ours = apply_lora(copy.deepcopy(base), bias="lora_only", lora_dropout=0.1)
    perturb(ours)
    save_adapter(ours, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
        expected, found = output_of(ours), output_of(theirs, inputs=inputs_for(base))
    assert torch.equal(found, expected)
    about_transformers = "is_gradient_checkpointing"  # PEFT asks it of every model
    assert [str(w.message) for w in caught if about_transformers not in str(w.message)] == []


@pytest.mark.parametrize("kind", sorted(set(peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)))
def test_default_targets_equal_pefts_where_both_have_them(kind: str) -> None:
    if kind in DEFAULT_TARGETS:
        table = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        assert set(DEFAULT_TARGETS[kind]) == set(table[kind])
