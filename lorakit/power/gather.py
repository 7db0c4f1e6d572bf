"""The sum of all ranks' readings, where torch.distributed runs."""

import json
import sys
from typing import Any

from lorakit.power.reading import Reading, add_readings


def gather_readings(reading: Reading) -> Reading:
    """The sum over all ranks, which every rank gets; every rank must call it. Alone, the reading itself."""
    torch = sys.modules.get("torch")
    if torch is None or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return reading
    return add_readings([Reading.from_json(data) for data in _all_gather(torch, reading.to_json())])


def _all_gather(torch: Any, data: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rank's JSON, as bytes in tensors: torch's own object collectives would unpickle."""
    on_gpu = torch.distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    text = json.dumps(data).encode()
    size = torch.tensor([len(text)], device=device)
    sizes = [torch.zeros_like(size) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(sizes, size)
    longest = int(max(sizes))
    padded = torch.frombuffer(bytearray(text.ljust(longest)), dtype=torch.uint8).to(device)
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded)
    return [json.loads(part.cpu().numpy().tobytes()) for part in parts]
