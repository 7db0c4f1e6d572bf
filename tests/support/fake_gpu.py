"""Run a module, as `python -m` does, on a machine with a fake GPU: fake_gpu.cpp.

  python -m tests.support.fake_gpu LIBRARY pytest tests/training/test_graphs.py     LIBRARY as `build` makes it

What it finds without a GPU: tensors left on the host, operations that make the host wait, types that autocast changes,
and errors in code that runs only on a GPU. A CUDA graph uses fixed memory and forbids waits, as on a real GPU, and
what it leaves in its own memory is NaN. What it cannot find: reordering by streams, the cost of kernels, rounding.
"""

import ctypes
import importlib.util
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace


def build(folder: Path) -> Path | None:
    """Compile the library, in about 30 s; None where there is no compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    torch, library = torch_folder(), folder / "fake_gpu.so"
    include = torch / "include"
    options = ["-shared", "-fPIC", "-std=c++20", "-O0", "-w", f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"]
    libraries = [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
    source = Path(__file__).with_suffix(".cpp")
    subprocess.run([compiler, *options, str(source), *libraries, "-o", str(library)], check=True)
    return library


def torch_folder() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent


def install(library: str) -> None:
    """Make "cuda" a device of this process, in which torch is not imported yet."""
    assert "torch" not in sys.modules, "torch asks once, when it is imported, what there is"
    device = ctypes.CDLL(library)
    device.fake_gpu_waits.restype = ctypes.c_char_p
    device.fake_gpu_used.restype = device.fake_gpu_peak.restype = ctypes.c_longlong
    device.fake_gpu_begin_graph.restype = ctypes.c_void_p
    import torch

    class Stream:
        def wait_stream(self, other: "Stream") -> None:
            pass

    class Graph:
        def replay(self) -> None:
            device.fake_gpu_replay(ctypes.c_void_p(self.recorded))

    @contextmanager
    def record(graph: Graph, pool: object = None, stream: object = None) -> Iterator[None]:
        graph.recorded = device.fake_gpu_begin_graph()
        try:
            yield
        finally:
            device.fake_gpu_end_graph()

    properties = SimpleNamespace(name="a fake GPU", uuid="00000000-0000-0000-0000-000000000000", major=9, minor=0)
    answers = {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "current_stream": lambda device=None: Stream(),
        "device_count": lambda: 1,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: properties.name,
        "get_device_properties": lambda device=None: properties,
        "get_rng_state": lambda device=None: torch.get_rng_state(),  # it draws from the CPU's generator
        "graph": record,
        "graph_pool_handle": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_initialized": lambda: True,
        "manual_seed_all": lambda seed: None,
        "max_memory_allocated": lambda _=None: device.fake_gpu_peak(),
        "mem_get_info": lambda device=None: (2**36, 2**36),
        "memory_allocated": lambda _=None: device.fake_gpu_used(),
        "reset_peak_memory_stats": lambda _=None: device.fake_gpu_reset_peak(),
        "set_device": lambda device: None,
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "set_sync_debug_mode": lambda mode: device.fake_gpu_forbid_waits(mode == "error"),
        "stream": lambda chosen: nullcontext(),
        "synchronize": lambda device=None: None,
        "waits": lambda: device.fake_gpu_waits().decode().splitlines(),  # ours: what made the host wait
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)


if __name__ == "__main__":
    _, library, module, *arguments = sys.argv
    install(library)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
