"""A model takes no adapter or LoraConfig for another task, not even where the heads have the same name and shape."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
)

import lorakit
from lorakit.adapters.tasks import TASKS, refuse_other_task, task_of_model
from tests.support.lora_models import as_peft_would_write

CLASSES = {
    "TOKEN_CLS": BertForTokenClassification,
    "SEQ_CLS": BertForSequenceClassification,
    "QUESTION_ANS": BertForQuestionAnswering,
    "CAUSAL_LM": BertLMHeadModel,
}
PAIRS = [(theirs, mine) for theirs in CLASSES for mine in CLASSES if theirs != mine]


def model_for(task: str) -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    return CLASSES[task](BertConfig(vocab_size=50, is_decoder=task == "CAUSAL_LM", **sizes))


@pytest.mark.parametrize("written_by", ["lorakit", "PEFT"])
@pytest.mark.parametrize(("theirs", "mine"), PAIRS)
def test_an_adapter_for_another_task_is_refused_and_the_model_unchanged(
    theirs: str, mine: str, written_by: str, tmp_path: Path
) -> None:
    folder = lorakit.save_adapter(lorakit.apply_lora(model_for(theirs), r=2, target_modules=["query"]), tmp_path)
    if written_by == "PEFT":
        as_peft_would_write(folder)
    model = model_for(mine)
    before = list(model.state_dict())
    with pytest.raises(
        ValueError,
        match=rf"^the adapter is for {theirs}, and this {type(model).__name__} is for {mine}; use a model for {theirs},"
        r" or pass check_base=False to use it here anyway$",
    ):
        lorakit.load_adapter(model, folder)
    assert list(model.state_dict()) == before
    assert lorakit.load_adapter(model_for(theirs), folder)


@pytest.mark.parametrize(("theirs", "mine"), PAIRS)
def test_a_lora_config_for_another_task_is_refused(theirs: str, mine: str) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type=theirs, target_modules=["query"])
    with pytest.raises(ValueError, match=f"^the LoraConfig's task_type is for {theirs}, and this .* is for {mine}"):
        lorakit.apply_lora(model_for(mine), config)
    assert lorakit.apply_lora(model_for(theirs), config)


def test_check_base_false_takes_the_head_of_another_task(tmp_path: Path) -> None:
    trained = lorakit.apply_lora(model_for("SEQ_CLS"), r=2, target_modules=["query"])
    with torch.no_grad():
        trained.classifier.weight += 1
    model = lorakit.load_adapter(model_for("TOKEN_CLS"), lorakit.save_adapter(trained, tmp_path), check_base=False)
    assert torch.equal(model.classifier.weight, trained.classifier.weight)


@pytest.mark.parametrize("task", [None, "TOKEN_CLS"])
@pytest.mark.parametrize("kind", [BertModel, BertForMultipleChoice])
def test_a_class_without_a_task_of_its_own_takes_any(kind: Callable[..., nn.Module], task: str | None) -> None:
    model = kind(model_for("SEQ_CLS").config)
    assert task_of_model(model) is None
    refuse_other_task(model, task, "the adapter", "")


def test_decoders_that_see_images_take_adapters_for_text() -> None:
    class SeesForConditionalGeneration(nn.Module):
        """As Gemma 3's and Qwen2-VL's, whose adapters are for CAUSAL_LM."""

    refuse_other_task(SeesForConditionalGeneration(), "CAUSAL_LM", "the adapter", "")
    with pytest.raises(ValueError, match="the adapter is for SEQ_CLS, and this SeesForConditionalGeneration is for"):
        refuse_other_task(SeesForConditionalGeneration(), "SEQ_CLS", "the adapter", "")


def test_every_task_is_one_of_pefts() -> None:
    peft = pytest.importorskip("peft")
    assert set(TASKS.values()) <= {task.value for task in peft.TaskType}
