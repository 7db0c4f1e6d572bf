"""The job of `test_adapters_under_ddp_and_fsdp.py`: adapters on two ranks, compared with one process.

Starts its second rank itself; the two connect through the free port in MASTER_PORT:

  MASTER_PORT=PORT python -m tests.support.adapter_ranks FOLDER
"""

import copy
import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from lorakit.adapters.quantization import shrink_base
from lorakit.adapters.storage import load_adapter, save_adapter
from lorakit.lora import apply_lora, disable_lora, merge_lora, remove_lora, set_adapter, unmerge_lora
from lorakit.nn.weights import regather, whole
from lorakit.training.distributed import process_group
from tests.support.lora_models import IDS, LABELS, NO_DROPOUT, logits, perturb, tiny_roberta

EVERYTHING = {"target_modules": "all-linear", "bias": "all"}
DORA = {"target_modules": ["query", "word_embeddings"], "use_dora": True}


def parallelize(model: nn.Module, kind: str) -> nn.Module:
    if kind == "ddp":
        return DistributedDataParallel(model)
    for layer in model.roberta.encoder.layer:
        fully_shard(layer)
    return fully_shard(model)


def train_save_and_load(kind: str, out: str) -> None:
    """Two steps with half the batch per rank, then saving, loading, switching off and a late backward pass."""
    rank = dist.get_rank()
    options = {"bias": "all", "target_modules": None if kind == "ddp" else "all-linear"}
    model = apply_lora(tiny_roberta(**NO_DROPOUT), **options)
    perturb(model)
    reference = copy.deepcopy(model)
    parallel = parallelize(model, kind)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
    plain = torch.optim.SGD([p for p in reference.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        parallel(IDS[rank : rank + 1], labels=LABELS[rank : rank + 1]).loss.backward()
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
def merge_and_save(kind: str, options: dict, out: str) -> None:
    """Merging, unmerging and saving give one process's values; what cannot be done to this kind is refused."""
    model = apply_lora(tiny_roberta(**NO_DROPOUT), **options)
    apply_lora(model, **options, seed=1, adapter_name="second")
    perturb(model)
    parallel = parallelize(model, kind)
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
    if kind == "fsdp2":
        refusals_when_sharded(model, parallel, options, out)
    else:
        exchanges_and_refusals_when_replicated(model, parallel, out)


@torch.no_grad()
def refusals_when_sharded(model: nn.Module, parallel: nn.Module, options: dict, out: str) -> None:
    tuned = logits(parallel)
    acts = {
        "set_adapter": lambda: set_adapter(parallel, "default"),
        "remove_lora": lambda: remove_lora(parallel, merge=True),
        "apply_lora": lambda: apply_lora(model, **options, adapter_name="third"),
        "adding an adapter": lambda: load_adapter(parallel, out, "fourth", check_base=False),
        "shrink_base": lambda: shrink_base(parallel),
    }
    for what, act in acts.items():
        with pytest.raises(ValueError, match=f"{what}: .* sharded over processes.* or save_adapter"):
            act()
    assert torch.equal(logits(parallel), tuned)  # unchanged


@torch.no_grad()
def exchanges_and_refusals_when_replicated(model: nn.Module, parallel: nn.Module, out: str) -> None:
    tuned = logits(parallel)
    load_adapter(parallel, out)  # the same parameters, which are exchanged
    assert torch.equal(logits(set_adapter(parallel, "second")), tuned)
    apply_lora(model, r=2, adapter_name="third")
    set_adapter(model, "second")
    other = save_adapter(apply_lora(tiny_roberta(**NO_DROPOUT), r=3), f"{out}-{dist.get_rank()}")
    for act in (lambda: set_adapter(parallel, "third"), lambda: load_adapter(parallel, other)):
        with pytest.raises(ValueError, match="trains other parameters than .* put it into the model itself"):
            act()
    advised = DistributedDataParallel(set_adapter(copy.deepcopy(parallel.module), "third"))
    assert torch.equal(logits(advised), logits(set_adapter(copy.deepcopy(model), "third")))
    with pytest.raises(ValueError, match="in a DistributedDataParallel, which .* apply_lora first, then wrap"):
        apply_lora(DistributedDataParallel(tiny_roberta()))
    assert torch.equal(logits(parallel), tuned)
    torch.testing.assert_close(logits(remove_lora(parallel, merge=True)), tuned, rtol=1e-4, atol=1e-5)


def refuse_what_fsdp1_holds_in_parts(out: str) -> None:
    """FSDP1 shows each rank flat parts: they used to be written as the adapter."""
    model = apply_lora(tiny_roberta(**NO_DROPOUT), **EVERYTHING)
    perturb(model)
    tuned = logits(model)
    parallel = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    torch.testing.assert_close(logits(parallel), tuned, rtol=1e-4, atol=1e-5)
    parts = {
        "save_adapter": lambda m: save_adapter(m, out),
        "merge_lora": merge_lora,
        "disable_lora": lambda m: disable_lora(m).__enter__(),
    }
    sharded = {"remove_lora": remove_lora, "shrink_base": shrink_base}
    for wrapped in (parallel, model):
        for what, act in parts.items():
            with pytest.raises(ValueError, match=f"{what}: .*a wrapper such as FSDP1 .*summon_full_params"):
                act(wrapped)
        for what, act in sharded.items():
            with pytest.raises(ValueError, match=f"{what}: .* sharded over processes"):
                act(wrapped)
    assert not os.path.exists(out)
    dist.barrier()
    with FullyShardedDataParallel.summon_full_params(parallel):
        with pytest.raises(ValueError, match="remove_lora: .* sharded over processes"):
            remove_lora(parallel)
        save_adapter(parallel, out)
    dist.barrier()
    assert torch.equal(logits(load_adapter(tiny_roberta(**NO_DROPOUT), out)), tuned)


def compare_with_one_process(folder: str) -> None:
    with process_group():  # without it torch sometimes aborts at the end
        for kind in ("ddp", "fsdp2"):
            train_save_and_load(kind, f"{folder}/{kind}")
            merge_and_save(kind, EVERYTHING, f"{folder}/{kind}-merged")
            merge_and_save(kind, DORA, f"{folder}/{kind}-dora")
        refuse_what_fsdp1_holds_in_parts(f"{folder}/fsdp1")
    print("fine\n", end="", flush=True)  # in one write: two ranks share the pipe


if __name__ == "__main__":
    second = os.fork()  # before any computation; importing everything twice would take most of the time
    rank = "0" if second else "1"
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    try:
        compare_with_one_process(sys.argv[1])
    finally:
        failed = second and os.waitstatus_to_exitcode(os.waitpid(second, 0)[1])
    sys.exit(failed)
