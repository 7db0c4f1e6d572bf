"""Operations that would make the host wait for a GPU, seen on a CPU: reading back, mask indices, sending numbers."""

import traceback

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READ_BACK = ("_local_scalar_dense", "masked_select", "nonzero", "is_nonzero", "equal", "unique", "_unique2")
SENT_OVER = ("lift_fresh",)  # torch.tensor([...]): onto a device it is a copy that waits


class Waits(TorchDispatchMode):
    """Notes in `seen` the operations that make the host wait, in order."""

    def __init__(self):
        super().__init__()
        self.seen, self.where = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in READ_BACK + SENT_OVER or by_mask:
            self.seen.append(name)
            self.where.append(traceback.extract_stack(limit=8)[:-1])
        return function(*args, **(kwargs or {}))
