"""In place of NVIDIA's pynvml: its own constants and exceptions, over the fake NVML of this process's machine.

The real module is looked for further down the path and executed, so that the meters find every name that they expect.
A function that the fake does not have answers "not supported".
"""

import importlib.util
import sys
from pathlib import Path


def _real_pynvml() -> dict:
    here = Path(__file__).resolve().parent
    for folder in sys.path:
        path = Path(folder or ".") / "pynvml.py"
        if path.resolve().parent != here and path.exists():
            spec = importlib.util.spec_from_file_location("_real_pynvml", path)
            module = importlib.util.module_from_spec(spec)
            sys.modules["_real_pynvml"] = module
            spec.loader.exec_module(module)
            return {name: value for name, value in vars(module).items() if not name.startswith("__")}
    raise ImportError("No module named 'pynvml': this meter did not install NVIDIA's library")


globals().update(_real_pynvml())

from drive import this_machine, world_time  # noqa: E402
from sensors import NOT_SUPPORTED, FakeNvml  # noqa: E402

_fake = FakeNvml(this_machine(), world_time, NVMLError)  # noqa: F821


def _not_supported(*_arguments, **_options):
    raise NVMLError(NOT_SUPPORTED)  # noqa: F821


for _name in [name for name, value in list(globals().items()) if name.startswith("nvml") and callable(value)]:
    if _name.startswith(("nvmlDevice", "nvmlSystem", "nvmlInit", "nvmlShutdown", "nvmlUnit", "nvmlVgpu")):
        globals()[_name] = getattr(_fake, _name, _not_supported)
