"""The same adapted model under Trainer, accelerate, gradient checkpointing, torch.compile, DDP and FSDP2."""

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import RobertaForTokenClassification

from lorakit.lora import apply_lora, disable_lora, merge_lora, set_adapter, without_gradient
from tests.test_lora import IDS, logits, perturb, tiny_roberta

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LABELS = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])


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
def test_trainer_trains_evaluates_and_saves_a_base_that_reloads(tmp_path: Path) -> None:
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

    model.save_pretrained(tmp_path / "base")
    reloaded, report = RobertaForTokenClassification.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert not report["missing_keys"]  # nothing is random
    model.eval()
    with disable_lora(model):
        hidden = model.roberta(IDS).last_hidden_state
    assert torch.equal(reloaded.eval().roberta(IDS).last_hidden_state, hidden)

    tuned = logits(model)
    trainer.save_model(tmp_path / "trainer")  # the full state: the base, the head and the updates under their own names
    state = load_file(tmp_path / "trainer" / "model.safetensors")
    assert not {name for name, p in model.named_parameters() if p.requires_grad} - state.keys()
    fresh = apply_lora(tiny_roberta(**NO_DROPOUT), seed=5)
    fresh.load_state_dict(state)
    assert torch.equal(logits(fresh), tuned)


WORKER = """
import copy, pytest, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.training.distributed import process_group
from lorakit.lora import apply_lora, disable_lora, merge_lora, remove_lora, set_adapter, unmerge_lora
from lorakit.nn.weights import regather, whole
from lorakit.adapters.quantization import shrink_base
from tests.integration.test_friends import IDS, LABELS, NO_DROPOUT, logits, perturb, tiny_roberta

group = process_group()  # torch alone now and then aborts at the end
group.__enter__()
rank = dist.get_rank()


def run(kind, out):
    options = dict(bias="all", **({} if kind == "ddp" else {"target_modules": "all-linear"}))
    model = apply_lora(tiny_roberta(**NO_DROPOUT), **options)
    perturb(model)
    reference = copy.deepcopy(model)
    if kind == "ddp":
        parallel = DistributedDataParallel(model)
    else:
        for layer in model.roberta.encoder.layer:
            fully_shard(layer)
        parallel = fully_shard(model)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
    plain = torch.optim.SGD([p for p in reference.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        parallel(IDS[rank:rank + 1], labels=LABELS[rank:rank + 1]).loss.backward()
        optimizer.step()
        plain.zero_grad()
        reference(IDS, labels=LABELS).loss.backward()
        plain.step()
    expected, found = logits(reference), parallel(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    save_adapter(parallel, out)
    dist.barrier()
    fresh = load_adapter(tiny_roberta(**NO_DROPOUT), out)
    torch.testing.assert_close(logits(fresh), expected, rtol=1e-4, atol=1e-5)
    tuned = logits(parallel)
    loss = parallel(IDS, labels=LABELS).loss
    with disable_lora(parallel):
        with disable_lora(parallel):
            assert torch.equal(logits(parallel), logits(tiny_roberta(**NO_DROPOUT)))
        assert torch.equal(logits(parallel), logits(tiny_roberta(**NO_DROPOUT)))
    assert torch.equal(logits(parallel), tuned)
    optimizer.zero_grad()
    loss.backward()  # of a graph from before
    plain.zero_grad()
    reference(IDS, labels=LABELS).loss.backward()
    wanted = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(whole(p.grad), wanted[name], rtol=1e-3, atol=1e-4, msg=name)


@torch.no_grad()
def merging(kind, options, out):
    model = apply_lora(tiny_roberta(**NO_DROPOUT), **options)
    apply_lora(model, **options, seed=1, adapter_name="second")
    perturb(model)
    if kind == "ddp":
        parallel = DistributedDataParallel(model)
    else:
        for layer in model.roberta.encoder.layer:
            fully_shard(layer)
        parallel = fully_shard(model)
    tuned, base = logits(parallel), logits(tiny_roberta(**NO_DROPOUT))
    values = {name: whole(p).clone() for name, p in model.named_parameters()}
    for _ in range(2):
        merge_lora(parallel)
        assert not torch.equal(logits(parallel), tuned)
        torch.testing.assert_close(logits(parallel), tuned, rtol=1e-4, atol=1e-5)
        save_adapter(parallel, out)
        with disable_lora(parallel):
            assert torch.equal(logits(parallel), base)
        torch.testing.assert_close(logits(parallel), tuned, rtol=1e-4, atol=1e-5)
        unmerge_lora(parallel)
        assert torch.equal(logits(parallel), tuned)
        regather(model)
        for name, p in model.named_parameters():
            assert torch.equal(whole(p), values[name]), name
    dist.barrier()
    assert torch.equal(logits(load_adapter(tiny_roberta(**NO_DROPOUT), out)), tuned)
    acts = {
        "set_adapter": lambda: set_adapter(parallel, "default"),
        "remove_lora": lambda: remove_lora(parallel, merge=True),
        "apply_lora": lambda: apply_lora(model, **options, adapter_name="third"),
        "adding an adapter": lambda: load_adapter(parallel, out, "fourth", check_base=False),
        "shrink_base": lambda: shrink_base(parallel),
    }
    for what, act in acts.items() if kind == "fsdp2" else ():
        with pytest.raises(ValueError, match=f"{what}: .* sharded over processes.* or save_adapter"):
            act()
    if kind == "fsdp2":
        assert torch.equal(logits(parallel), tuned)  # as it was
    else:
        load_adapter(parallel, out)  # the same parameters, which are exchanged
        assert torch.equal(logits(set_adapter(parallel, "second")), tuned)
        apply_lora(model, r=2, adapter_name="third")
        set_adapter(model, "second")
        other = save_adapter(apply_lora(tiny_roberta(**NO_DROPOUT), r=3), f"{out}-{rank}")
        for act in (lambda: set_adapter(parallel, "third"), lambda: load_adapter(parallel, other)):
            with pytest.raises(ValueError, match="trains other parameters than .* put it into the model itself"):
                act()
        with pytest.raises(ValueError, match="in a DistributedDataParallel, which .* apply_lora first, then wrap"):
            apply_lora(DistributedDataParallel(tiny_roberta()))
        assert torch.equal(logits(parallel), tuned)
        torch.testing.assert_close(logits(remove_lora(parallel, merge=True)), tuned, rtol=1e-4, atol=1e-5)


for kind in ("ddp", "fsdp2"):
    run(kind, f"{sys.argv[1]}/{kind}")
    merging(kind, {"target_modules": "all-linear", "bias": "all"}, f"{sys.argv[1]}/{kind}-merged")
    merging(kind, {"target_modules": ["query", "word_embeddings"], "use_dora": True}, f"{sys.argv[1]}/{kind}-dora")
group.__exit__(None, None, None)
print("fine")
"""


def test_two_processes_train_save_load_and_merge_like_one(tmp_path: Path) -> None:
    """Two gloo ranks with half the batch each, under DDP and FSDP2, equal one process with the whole.

    What FSDP2 cannot take part in (other parameters than it was given) is refused.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    (tmp_path / "worker.py").write_text(WORKER)
    root = Path(__file__).parents[2]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "worker.py"), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=root,
            env=os.environ
            | {
                "PYTHONPATH": str(root),
                "OMP_NUM_THREADS": "1",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for process, output in zip(ranks, outputs, strict=True):
        assert process.returncode == 0, output
        assert "fine" in output.splitlines(), output
    for kind in ("ddp", "fsdp2"):
        assert json.loads((tmp_path / kind / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"
