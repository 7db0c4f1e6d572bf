"""CUDA as the meter meets it: used only if this process runs it already, never started, never made to fail."""

import logging
import sys

log = logging.getLogger("lorakit.energy")


def cuda_uuids() -> list[str] | None:
    """UUIDs of CUDA's devices, without prefix, if CUDA runs in this process already, else None."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


def finish_cuda_work() -> None:
    """Wait for the work queued on the current device, if CUDA runs; another device may have no context to wait for."""
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:  # a broken CUDA is the caller's to meet, not the meter's to raise
            log.warning("CUDA could not be synchronised at a window's edge: %s", error)
