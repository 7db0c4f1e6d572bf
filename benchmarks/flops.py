"""FLOPs of a training step of a RoBERTa-shaped token classifier: predicted from the shapes, and counted by torch.

An in × out matrix costs 2·in·out operations per token forward, as many for its input's gradient and as many for its
own. Full fine-tuning pays all three. A frozen matrix needs no gradient of its own, and below the lowest trained matrix
nothing is differentiated. The tests check that prediction and count are equal.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from lorakit.nn.functional import sum_is_kept, sum_pays

# name, position in the layer (earlier ones are lower), and whether its input and its output are the wide side
MATRICES = (
    ("attention.self.query", 0, False, False),
    ("attention.self.key", 0, False, False),
    ("attention.self.value", 0, False, False),
    ("attention.output.dense", 1, False, False),
    ("intermediate.dense", 2, False, True),
    ("output.dense", 3, True, False),
)
IN_PLACE = {torch.ops.aten.addmm_: torch.ops.aten.addmm, torch.ops.aten.baddbmm_: torch.ops.aten.baddbmm}


def predict_flops(
    config: Any,
    rows: int,
    width: int,
    targets: Sequence[str] | None = None,
    r: int = 0,
    lowest_layer: int = 0,
    may_merge: bool = False,
    one_attention_operator: bool = False,
    pairs: int | None = None,
) -> int:
    """FLOPs of one step on a batch, from shapes alone.

    Args:
        config: a RobertaConfig, for its sizes.
        targets: suffixes of the names of the matrices with LoRA; None for full fine-tuning.
        lowest_layer: first layer with LoRA.
        may_merge: large batches are multiplied by W + s·BA, as lorakit does while training in float32.
        one_attention_operator: attention is one operator, whose backward recomputes the scores (without dropout).
        pairs: token pairs whose score is computed, if lorakit's attention computes fewer than all pairs of each row.
    """
    tokens, hidden = rows * width, config.hidden_size
    sizes = (hidden, config.intermediate_size)
    product = 2 * (pairs or rows * width * width) * hidden  # scores, or their product with the values
    ends = tuple(f".{target}" for target in targets or ())
    adapted = [name for name, *_ in MATRICES if ends and f".{name}".endswith(ends)]
    places = [place for name, place, *_ in MATRICES if name in adapted]
    lowest = (0, -1) if targets is None else (lowest_layer, min(places))
    total = 6 * tokens * hidden * config.num_labels
    for layer in range(config.num_hidden_layers):
        for name, place, wide_in, wide_out in MATRICES:
            size_in, size_out = sizes[wide_in], sizes[wide_out]
            matrix, needs_dx = 2 * tokens * size_in * size_out, (layer, place) > lowest
            total += matrix * (1 + needs_dx + (targets is None))
            if name not in adapted or layer < lowest_layer:
                continue
            down, up = 2 * tokens * r * size_in, 2 * tokens * r * size_out
            if may_merge and sum_pays(tokens, size_in, size_out):
                sums = 1 + (needs_dx and not sum_is_kept(size_in, size_out))
                total += 2 * size_in * size_out * r * sums + 2 * down + 2 * up
            else:
                total += 2 * down + 3 * up + needs_dx * down  # xA, (xA)B; gB, dA, dB; dx
        total += 2 * product
        if (layer, 0) > lowest:
            wanted = {"query", "key", "value"}
        else:  # in the lowest layer only adapted matrices need a gradient from the attention
            wanted = {n.rsplit(".", 1)[1] for n in adapted if "self" in n} if layer == lowest[0] else set()
        if one_attention_operator and pairs is None:
            total += 5 * product * bool(wanted)
        else:
            total += product * (len(wanted) + bool(wanted & {"query", "key"}))
    return total


class Operations(TorchDispatchMode):
    """Counts what reaches the device: operators that make or write a tensor (no views), and their FLOPs.

    On a GPU such an operator is one kernel launch or a few. torch's tables lack addmm_, baddbmm_, oneDNN's matmuls and
    the CPU's single attention operator; they are counted like addmm, baddbmm, matmuls and the GPU's attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        returned = function._schema.returns
        self.operators += not any(r.alias_info is not None and not r.alias_info.is_write for r in returned)
        packet = function.overloadpacket
        packet = IN_PLACE.get(packet, packet)
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=result)
        elif packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.flops += sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
        elif str(packet) == "mkldnn._linear_pointwise":  # x (…, in), weight (out, in): lorakit's matmuls on some CPUs
            weight = args[2] if function._overloadname == "binary" else args[1]
            self.flops += 2 * args[0].numel() * weight.shape[0]
        elif packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.flops += sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
        return result
