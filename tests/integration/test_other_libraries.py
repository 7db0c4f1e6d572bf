"""The same adapted model under Trainer, accelerate, gradient checkpointing and torch.compile."""

import copy
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from safetensors.torch import load_file
from torch import nn
from transformers import RobertaForTokenClassification

from lorakit.lora import (
    apply_lora,
    disable_lora,
    merge_lora,
    set_adapter,
    without_gradient,
)
from tests.support.lora_models import IDS, LABELS, NO_DROPOUT, logits, perturb, tiny_roberta


def gradients(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """Gradients of one training step with dropout on, by name."""
    model.zero_grad()
    torch.manual_seed(seed)
    model(IDS, labels=LABELS).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_with_dropout(reentrant: bool) -> None:
    model = apply_lora(tiny_roberta(), lora_dropout=0.3, target_modules="all-linear").train()
    perturb(model)
    expected = gradients(model)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(model)
    assert without_gradient(model) == ()
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated.*:DeprecationWarning")  # torch.compile on a Function
@pytest.mark.parametrize("options", [{}, {"use_dora": True, "init_lora_weights": "pissa", "r": 3}])
def test_compile_has_no_graph_break_and_equal_output(options: dict) -> None:
    model = apply_lora(tiny_roberta(num_hidden_layers=1), **options)
    perturb(model)
    expected = logits(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)  # fullgraph: a break raises
    torch.testing.assert_close(logits(compiled), expected, rtol=1e-5, atol=1e-6)
    with disable_lora(compiled):
        assert torch.equal(logits(model), logits(tiny_roberta(num_hidden_layers=1)))
    merge_lora(compiled)
    torch.testing.assert_close(logits(compiled), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="call unmerge_lora"):
        logits(compiled).sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
def test_a_compiled_model_under_checkpointing_with_dropout_gives_the_same_gradients() -> None:
    model = apply_lora(tiny_roberta(num_hidden_layers=1, **NO_DROPOUT), lora_dropout=0.3).train()
    perturb(model)

    def step() -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager")
        torch.manual_seed(0)
        compiled(IDS, labels=LABELS).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    expected = step()
    model.activation_checkpointing_enable({"use_reentrant": False})
    found = step()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_hot_swap_in_a_compiled_model_needs_no_new_compilation() -> None:
    model = apply_lora(tiny_roberta(num_hidden_layers=1), seed=1)
    perturb(model)
    first = logits(model)
    apply_lora(model, seed=2, adapter_name="second")
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, backend=counter)
    logits(compiled)
    frames = counter.frame_count
    set_adapter(compiled, "default")
    torch.testing.assert_close(logits(compiled), first, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == frames


def test_accelerate_trains_like_a_plain_loop(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is optional")
    plain = apply_lora(tiny_roberta(**NO_DROPOUT), bias="all")
    other = copy.deepcopy(plain)
    accelerator = accelerate.Accelerator(cpu=True)
    wrapped, optimizer = accelerator.prepare(other, torch.optim.AdamW(other.parameters(), 1e-2))
    reference = torch.optim.AdamW(plain.parameters(), 1e-2)
    for _ in range(3):
        for model, steps, backward in (
            (plain, reference, torch.Tensor.backward),
            (wrapped, optimizer, accelerator.backward),
        ):
            steps.zero_grad()
            backward(model(IDS, labels=LABELS).loss)
            steps.step()
    assert torch.equal(logits(accelerator.unwrap_model(wrapped)), logits(plain))


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_trainer_trains_evaluates_and_saves_a_model_that_reloads(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments

    model = apply_lora(tiny_roberta(**NO_DROPOUT))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    rows = [{"input_ids": ids, "labels": labels} for ids, labels in zip(IDS, LABELS, strict=True)]
    arguments = TrainingArguments(
        str(tmp_path / "run"), num_train_epochs=2, learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]  # the forward signature is the model's own, so labels are found
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in frozen.items())

    model.eval().save_pretrained(tmp_path / "model")
    reloaded, report = RobertaForTokenClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"]  # nothing is random
    torch.testing.assert_close(logits(reloaded.eval()), logits(model))

    tuned = logits(model)
    trainer.save_model(tmp_path / "trainer")  # the full state: the base, the head and the updates under their own names
    state = load_file(tmp_path / "trainer" / "model.safetensors")
    assert not {name for name, p in model.named_parameters() if p.requires_grad} - state.keys()
    fresh = apply_lora(tiny_roberta(**NO_DROPOUT), seed=5)
    fresh.load_state_dict(state)
    assert torch.equal(logits(fresh), tuned)
