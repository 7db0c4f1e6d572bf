"""PEFT as an oracle: on the same base it adapts the same layers, trains the same parameters, computes the same bits."""

import copy
import re
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from lorakit.adapters import load_adapter, save_adapter
from lorakit.fused import keep_mask
from lorakit.layers import lora_class
from lorakit.lora import apply_lora, lora_layers, peft_total
from lorakit.targets import DEFAULT_TARGETS, find_head
from tests.architectures import ARCHITECTURES, Architecture, output_of
from tests.test_lora import perturb

peft = pytest.importorskip("peft", reason="the oracle is the dev extra")
pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*is_gradient_checkpointing.*:FutureWarning"
    ),  # PEFT calls what transformers left
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*"),  # PEFT corrects itself aloud
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*"),
    pytest.mark.filterwarnings("ignore:.*tied.*"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*"),
    pytest.mark.filterwarnings("ignore:r=.* is more than .* can use"),
]


DTYPES = [torch.float32, torch.float32, torch.bfloat16, torch.float64]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.1, torch.float64: 1e-5}  # relative to the largest value, at least 1


def peft_twin(base: nn.Module, options: dict) -> nn.Module:
    """PEFT's model on a copy of the untouched base, for the arguments that ours is adapted with."""
    config = peft.LoraConfig(**options, modules_to_save=list(find_head(base)) or None)
    return peft.get_peft_model(copy.deepcopy(base), config).eval()


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


def drop_alike(theirs: nn.Module, options: dict) -> None:
    if {"init_lora_weights", "use_dora"} & options.keys():
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
    """Arguments that mean the same to both; `targets` None is each one's own default."""
    architecture = ARCHITECTURES[name]
    options: dict = {
        "r": data.draw(st.sampled_from([1, 2, 4, 8]), label="r"),
        "lora_alpha": data.draw(st.sampled_from([1, 2, 8, 5, 16.5]), label="alpha"),
        "lora_dropout": data.draw(st.sampled_from([0.0, 0.3]), label="dropout"),
        "bias": data.draw(st.sampled_from(["none", "all", "lora_only"]), label="bias"),
    }
    names = target_names(architecture)
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


def target_names(architecture: Architecture) -> list[str]:
    """Names of the layers outside the head that can be targeted by themselves, tied ones left out."""
    model = architecture.build()
    weights = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found, refused = [], set(BYPASSED)
    for name, module in model.named_modules():
        outside = not any(name == head or name.startswith(f"{head}.") for head in architecture.head)
        if outside and lora_class(module) and weights[id(module.weight)] == 1:
            found.append(name.rpartition(".")[2])
        elif isinstance(module, nn.Embedding):
            refused.add(name.rpartition(".")[2])
    return sorted(set(found) - refused)


BYPASSED = {"rel_embeddings"}  # DeBERTa reads its weight


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # shrinking would take minutes
    suppress_health_check=list(HealthCheck),
)
@given(name=st.sampled_from(sorted(ARCHITECTURES)), dtype=st.sampled_from(DTYPES), data=st.data())
def test_targets_names_counts_outputs_gradients_and_files_are_pefts(
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
    drop_alike(theirs, options)
    # PEFT takes DoRA's norms from a product with the identity, which may round elsewhere
    exact = dtype is torch.float32 and not {"init_lora_weights", "use_dora"} & options.keys()
    tolerance = 0.0 if exact else TOLERANCE[dtype]

    def close(a: torch.Tensor, b: torch.Tensor, what: str, tolerance: float = tolerance, scale: float = 1.0) -> None:
        scale = max(scale, b.float().abs().max().item())
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * scale, msg=lambda m: f"{what}: {m}")

    ours.train(), theirs.train()
    outputs = []
    for model in (ours, theirs):
        torch.manual_seed(0)  # dropout draws from the default generator, in the same order
        out = output_of(model, base)
        out.float().square().mean().backward()
        outputs.append(out.detach())
    # in training sums are made in another order: into the weight where that pays, and by one addmm in backward
    rounding = max(tolerance, 2e-6)
    close(*outputs, "output", rounding)
    largest = max(p.grad.float().abs().max().item() for p in theirs.parameters() if p.grad is not None)
    theirs_by_name = {our_name(n): p for n, p in theirs.named_parameters()}
    for parameter_name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            expected = theirs_by_name[parameter_name].grad
            assert (parameter.grad is None) == (expected is None), parameter_name
            if expected is not None:
                close(parameter.grad, expected, parameter_name, rounding, scale=largest)

    ours.eval(), theirs.eval()
    close(output_of(ours, base), output_of(theirs, base), "output at rest")
    with torch.no_grad():
        expected = output_of(ours, base)
        folder = tmp_path_factory.mktemp("files")
        read_by_peft = peft.PeftModel.from_pretrained(copy.deepcopy(base), save_adapter(ours, folder / "ours")).eval()
        close(output_of(read_by_peft, base), expected, "our file in PEFT")
        theirs.save_pretrained(folder / "theirs")
        read_by_us = load_adapter(copy.deepcopy(base), folder / "theirs")
        close(output_of(read_by_us, base), output_of(theirs, base), "PEFT's file in ours")
        assert trained_names(read_by_us) == trained_names(ours)


@pytest.mark.parametrize("kind", sorted(set(peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)))
def test_default_targets_are_pefts_where_both_have_them(kind: str) -> None:
    if kind in DEFAULT_TARGETS and kind != "phi":  # PEFT adapts phi's feed-forward layers too
        table = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        assert set(DEFAULT_TARGETS[kind]) == set(table[kind])
