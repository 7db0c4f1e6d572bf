"""Parameter counts, parameters without a gradient, and LoRA+'s parameter groups, against PEFT where it has them."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import RobertaConfig, RobertaForTokenClassification

from lorakit.lora import (
    apply_lora,
    count_parameters,
    lora_plus_groups,
    peft_total,
    without_gradient,
)
from tests.support.architectures import ARCHITECTURES, output_of
from tests.support.lora_models import IDS, tiny_roberta


def roberta_base_on_meta() -> RobertaForTokenClassification:
    config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=11)
    with torch.device("meta"):
        return RobertaForTokenClassification(config)


def test_the_study_trains_700427_of_124653323() -> None:
    model = apply_lora(roberta_base_on_meta(), r=16, target_modules=["query", "value"], bias="all")
    count = count_parameters(model)
    assert (count.trainable, count.total) == (700_427, 124_653_323)
    assert peft_total(model) == 124_661_782  # PEFT keeps a second head of 8,459
    assert str(count) == "trainable params: 700,427 || all params: 124,653,323 || trainable%: 0.5619"


@pytest.mark.parametrize(
    ("options", "trainable"),
    [({"bias": "none"}, 598_283), ({"bias": "lora_only"}, 616_715), ({"r": 8}, 303_371)],
)
def test_trainable_counts_equal_pefts(options: dict, trainable: int) -> None:
    model = apply_lora(roberta_base_on_meta(), **{"r": 16, "target_modules": ["query", "value"], **options})
    assert count_parameters(model).trainable == trainable


def test_the_biases_of_keys_change_nothing() -> None:
    """bias="all" trains them because PEFT trains and counts them, but softmax cancels them."""
    model = apply_lora(tiny_roberta(), bias="all")
    model(IDS, labels=torch.ones_like(IDS)).loss.backward()
    attention = model.roberta.encoder.layer[0].attention.self
    assert attention.key.bias.grad.abs().max() < 1e-6 * attention.value.bias.grad.abs().max()


@pytest.mark.filterwarnings("ignore:r=.* is more than .* can use")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_backward_pass_reaches_every_trained_parameter(name: str) -> None:
    model = apply_lora(ARCHITECTURES[name].build(), init_lora_weights=False)
    output_of(model).square().mean().backward()
    assert without_gradient(model) == ()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), parameter_name
            assert parameter.grad.abs().max() > 0 or not parameter_name.endswith("lora_B"), parameter_name


def test_a_layer_that_the_output_does_not_use_is_named() -> None:
    model = apply_lora(ARCHITECTURES["layoutlm"].build(), target_modules=["pooler.dense", "query"])
    output_of(model).square().mean().backward()
    assert without_gradient(model) == ("layoutlm.pooler.dense.lora_A", "layoutlm.pooler.dense.lora_B")


def test_a_plain_torch_model_that_trains_nothing_under_checkpointing_is_noticed() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.up = nn.Embedding(9, 4), nn.Linear(4, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.up, self.table(ids), use_reentrant=True)

    model = apply_lora(Plain(), r=2, target_modules=["up"])
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        out = model(torch.arange(3))
    assert not out.requires_grad
    assert without_gradient(model) == ("up.lora_A", "up.lora_B")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT calls it
def test_lora_plus_groups_equal_pefts() -> None:
    peft = pytest.importorskip("peft", reason="the oracle is the dev extra")
    from peft.optimizers import create_loraplus_optimizer

    ours = apply_lora(tiny_roberta(), r=4, target_modules=["query", "value"], bias="all")
    found = torch.optim.AdamW(lora_plus_groups(ours, 1e-3, ratio=8, weight_decay=0.1))
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], bias="all", modules_to_save=["classifier"])
    theirs = peft.get_peft_model(tiny_roberta(), config)
    expected = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=8, loraplus_weight_decay=0.1
    )

    def table(optimizer: torch.optim.Optimizer) -> list[tuple[float, float, int]]:
        return sorted(
            (group["lr"], group["weight_decay"], sum(p.numel() for p in group["params"]))
            for group in optimizer.param_groups
            if group["params"]
        )

    assert table(found) == table(expected)


def test_every_trained_parameter_is_in_one_group_of_lora_plus() -> None:
    model = apply_lora(tiny_roberta(), target_modules=["word_embeddings", "query"], bias="all")
    groups = lora_plus_groups(model, 1e-3, ratio=4)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert sorted({group["lr"] for group in groups}) == [1e-6, 1e-3, 4e-3]
    with pytest.raises(ValueError, match="ratio must be at least 1, got 0.5"):
        lora_plus_groups(model, 1e-3, ratio=0.5)
