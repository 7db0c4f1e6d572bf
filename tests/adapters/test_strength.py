"""An adapter's strength at run time; PEFT's `rescale_adapter_scale` is the oracle."""

import math
from pathlib import Path

import pytest
import torch

from lorakit.adapters.disabling import disable_lora
from lorakit.adapters.merging import merge_lora
from lorakit.adapters.storage import save_adapter
from lorakit.adapters.strength import scale_lora
from lorakit.lora import apply_lora, set_adapter
from tests.support.lora_models import labelled_roberta, logits, trained_roberta

peft = pytest.importorskip("peft", reason="the oracle is the dev extra")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # PEFT calls it


@pytest.mark.parametrize("options", [{}, {"r": 1, "target_modules": "all-linear"}, {"use_dora": True}])
def test_outputs_are_pefts_and_the_adapters_own_come_back(options: dict, tmp_path: Path) -> None:
    ours = trained_roberta(**options)
    before, folder = logits(ours), save_adapter(ours, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(labelled_roberta(), folder).eval()
    for strength in (0, 0.3, 2, -1.5):
        with peft.helpers.rescale_adapter_scale(theirs, strength), scale_lora(ours, strength):
            torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-6)
        assert torch.equal(logits(ours), before)
    with scale_lora(ours, 0.5):
        again = save_adapter(ours, tmp_path / "again")
        with scale_lora(ours, 4), peft.helpers.rescale_adapter_scale(theirs, 2):
            torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-6)
    assert (again / "adapter_model.safetensors").read_bytes() == (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(KeyError), scale_lora(ours, 3):
        raise KeyError
    assert torch.equal(logits(ours), before)


def test_another_adapter_keeps_its_own_strength() -> None:
    model = trained_roberta()
    apply_lora(model, r=8, lora_alpha=4, target_modules=None, adapter_name="other")
    weaker = logits(model)
    set_adapter(model, "default")
    with scale_lora(model, 7):
        set_adapter(model, "other")
    assert torch.equal(logits(model), weaker)


def test_what_cannot_be_scaled_is_refused() -> None:
    model = trained_roberta()
    for strength in (math.nan, math.inf, True, "half"):
        with pytest.raises(ValueError, match="must be a finite number, such as 0.5, got"), scale_lora(model, strength):
            pass
    with disable_lora(model), pytest.raises(RuntimeError, match="inside disable_lora"), scale_lora(model, 1):
        pass
    with pytest.raises(ValueError, match="call unmerge_lora first"), scale_lora(merge_lora(model), 1):
        pass
