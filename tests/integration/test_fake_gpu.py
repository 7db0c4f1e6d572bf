"""Code written for a GPU, run on a fake one; and what the fake one detects."""

import os
import re
import subprocess
import sys

import pytest
import torch

from tests.support.fake_gpu import build
from tests.support.tiny import ROOT

fake = pytest.mark.skipif(not hasattr(torch.cuda, "waits"), reason="runs on the fake GPU, started by another test")
TESTS = (
    "integration/test_fake_gpu.py",
    "training/test_graphs.py",
    "training/test_session.py::test_a_gpu_is_waited_for_at_log_lines_only",
    "training/test_precision.py::test_a_gpus_originals_wait_on_the_host",
    "training/test_precision.py::test_the_curve_is_the_same_bit_for_bit",
    "training/test_evaluation.py::test_a_gpu_is_not_waited_for_between_batches",
    "training/test_many_labels.py::test_a_gpu_is_waited_for_at_log_lines_only",
    "training/test_many_labels.py::test_each_adapter_brings_its_labels_and_the_base_keeps_its_own",
)


@pytest.mark.skipif(torch.cuda.is_available() or torch.version.cuda is not None, reason="this build of torch has CUDA")
@pytest.mark.skipif(
    sys.platform != "linux" or not torch.__version__.startswith("2.13."),
    reason="fake_gpu.cpp is written for Linux and the internals of torch 2.13",
)
def test_what_is_written_for_a_gpu_runs_on_a_fake_one(tmp_path):
    library = build(tmp_path)
    if library is None:
        pytest.skip("needs a C++ compiler")
    command = [
        sys.executable,
        "-m",
        "tests.support.fake_gpu",
        str(library),
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-W", "ignore::DeprecationWarning"]  # torch's own, from what it imports for a GPU
    command += ["-k", "not torchs_own_compiler and not compiling_leaves and not when_compiled and not into_one_graph"]
    ran = subprocess.run(
        [*command, *(f"tests/{name}" for name in TESTS)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", ran.stdout)[1]) > 25
    assert "needs a GPU" not in ran.stdout


@fake
def test_tensors_of_the_host_and_of_the_device_do_not_mix():
    x = torch.ones(2, 2, device="cuda")
    assert x.is_cuda and str(x.device) == "cuda:0"
    assert torch.equal(x @ x, torch.full((2, 2), 2.0, device="cuda"))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.nn.functional.embedding(torch.tensor([0]), x)
    with torch.autocast("cuda", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16


@fake
def test_it_sees_what_makes_the_host_wait():
    x = torch.ones(3, device="cuda")
    torch.cuda.waits()
    x += 1
    there = torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    assert torch.cuda.waits() == []
    assert float(x.sum()) == 6
    assert torch.cuda.waits() == ["aten::_local_scalar_dense"]
    _ = x.cpu(), torch.ones(3).to("cuda"), torch.tensor([1, 2], device="cuda"), x.nonzero()
    assert torch.cuda.waits() == ["a copy to the host", "a copy to the device", "a copy to the device", "aten::nonzero"]
    _ = x[there > 0]
    assert "aten::nonzero" in torch.cuda.waits()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
            x.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@fake
def test_memory_that_is_in_use_is_counted():
    before = torch.cuda.memory_allocated()
    x = torch.ones(1000, device="cuda")
    y = x * 2
    assert torch.cuda.memory_allocated() - before == 8000
    del x, y
    assert torch.cuda.memory_allocated() == before
    assert torch.cuda.max_memory_allocated() >= before + 8000


@fake
def test_a_graph_works_on_fixed_places_and_leaves_nothing_else():
    given, total = torch.ones(2, device="cuda"), torch.zeros(2, device="cuda")
    weight = torch.ones(2, device="cuda", requires_grad=True)
    weight.grad = torch.zeros(2, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        between = given * weight
        between.sum().backward()
        total += between.detach() + torch.rand(2, device="cuda")
    assert torch.equal(total, torch.zeros(2, device="cuda"))  # nothing was done yet
    assert torch.equal(weight.grad, torch.zeros(2, device="cuda"))
    torch.manual_seed(0)
    expected = [torch.ones(2) + torch.rand(2), torch.ones(2) + torch.rand(2)]
    torch.manual_seed(0)
    graph.replay()
    assert torch.equal(total.cpu(), expected[0])
    graph.replay()
    assert torch.equal(total.cpu(), expected[0] + expected[1])
    assert torch.equal(weight.grad, torch.full((2,), 2.0, device="cuda"))
    assert between.isnan().all()
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), torch.cuda.graph(graph):
        total.sum().item()
