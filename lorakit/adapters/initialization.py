"""New adapters and the initial values of their updates: `init_lora_weights`, under PEFT's names.

True draws A as nn.Linear draws its weight and sets B to zero; "gaussian" draws A with standard deviation 1/r. Either
way the first output is the base's. "orthogonal" makes BA zero up to rounding. "pissa" (arXiv:2404.02948) and "olora"
(arXiv:2406.01775) start from factors of the weight and count the update from there. False draws both A and B, for
tests.
"""

import hashlib
import math
import warnings

import torch
from torch import Tensor, nn

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.config import LoRAConfig, pattern_matches, pissa_steps
from lorakit.adapters.names import submodule, unmatched
from lorakit.adapters.targets import default_targets, find_targets, keep_layers
from lorakit.nn.weights import Update, plain_weight, update_shapes


def new_adapter(
    model: nn.Module, config: LoRAConfig, saved: tuple[str, ...], seed: int = 0, strict: bool = True
) -> Adapter:
    """Make a new adapter for `model` without changing it: the layers that `config` names, with initial updates.

    Args:
        model: the base.
        config: its settings.
        saved: full names of the modules to train in full.
        seed: see `initial_update`.
        strict: raise for a pattern that matches nothing; False warns, as PEFT does.

    Raises:
        ValueError: as `apply_lora`.
    """
    wanted = default_targets(model) if config.target_modules is None else config.target_modules
    targets = find_targets(model, wanted, config.exclude_modules, saved)
    if config.layers_to_transform is not None:
        targets = keep_layers(targets, config.layers_to_transform, config.layers_pattern)
    for what in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, what):
            if not any(pattern_matches(pattern, name) for name in targets):
                if strict:
                    raise unmatched(what, pattern, (name.rpartition(".")[2] for name in targets))
                warnings.warn(f"{what} {pattern!r} of the adapter matches none of its layers: ignored", stacklevel=4)
    updates = {}
    for name in targets:
        r, alpha = config.rank_of(name), config.alpha_of(name)
        module = submodule(model, name)
        scaling = config.scaling(r, alpha)
        updates[name] = initial_update(module, name, r, alpha, scaling, config.init_lora_weights, seed)
    return Adapter(config, saved, targets, updates, {})


def initial_update(
    module: nn.Module, name: str, r: int, lora_alpha: float, scaling: float, how: bool | str, seed: int
) -> Update:
    """Make a layer's initial update; it depends on (seed, name) and, for PiSSA and OLoRA, on the weight.

    Args:
        module: a layer that can be adapted.
        name: its full name in the model.
        r: rank.
        lora_alpha: stored with the update.
        scaling: the factor on BA.
        how: `init_lora_weights`.
        seed: for a private generator; the global ones are neither read nor advanced.

    Raises:
        ValueError: `how` does not exist for this kind of layer, or r exceeds the weight's rank.
    """
    shape_A, shape_B = update_shapes(module, r)
    matrix = not isinstance(module, nn.Embedding | nn.Conv2d)  # Linear or Conv1D
    if isinstance(how, str) and how != "gaussian" and not matrix:
        raise ValueError(f"init_lora_weights={how!r} is for linear layers; {name!r} is a {type(module).__name__}")
    if _factors_weight(how) and r > min(shape_A[1], shape_B[0]):
        raise ValueError(f"init_lora_weights={how!r} needs r <= {min(shape_A[1], shape_B[0])} in {name!r}, got {r}")
    device = module.weight.device
    if device.type == "meta":
        A, B = (torch.empty(s, dtype=torch.float32, device="meta") for s in (shape_A, shape_B))
        start = (A, B) if _factors_weight(how) else None
        return Update(A, B, lora_alpha, scaling, start=start)

    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    start = None
    if _factors_weight(how):
        weight = plain_weight(module).detach().float()
        weight = weight if isinstance(module, nn.Linear) else weight.T  # (out, in)
        A, B = _olora(weight, r) if how == "olora" else _pissa(weight, r, scaling, pissa_steps(how), generator)
        start = (A.clone(), B.clone())
    elif how == "orthogonal":
        A, B = _orthogonal(r, shape_A[1], shape_B[0], generator)
    elif isinstance(module, nn.Embedding):
        A = torch.zeros(shape_A) if how else torch.randn(shape_A, generator=generator)
        B = torch.randn(shape_B, generator=generator)
    else:
        A, B = torch.empty(shape_A, dtype=torch.float32), torch.zeros(shape_B, dtype=torch.float32)
        if how == "gaussian":
            A.normal_(std=1 / r, generator=generator)
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)
            if not how:
                nn.init.kaiming_uniform_(B, a=math.sqrt(5), generator=generator)
    return Update(A.to(device), B.to(device), lora_alpha, scaling, start=start)


def _factors_weight(how: bool | str) -> bool:
    return how in ("pissa", "olora") or pissa_steps(how) is not None


def _pissa(
    weight: Tensor, r: int, scaling: float, steps: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The r largest singular directions: scaling·BA is the best rank-r approximation of the weight."""
    if steps is None:
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
        U, S, Vh = U[:, :r], S[:r], Vh[:r]
    else:  # svd_lowrank only draws from the global generator
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            U, S, V = torch.svd_lowrank(weight.cpu(), r, niter=steps)
        U, S, Vh = U.to(weight.device), S.to(weight.device), V.T.to(weight.device)
    root = torch.sqrt(S / scaling)
    return (root[:, None] * Vh).contiguous(), (U * root).contiguous()


def _olora(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The first r columns of Q and rows of R in weight = QR."""
    Q, R = torch.linalg.qr(weight)
    return R[:r].contiguous(), Q[:, :r].contiguous()


def _orthogonal(r: int, inputs: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A and B from complementary rows of one orthogonal matrix, so that BA = 0 though neither is zero."""
    Q, _ = torch.linalg.qr(torch.randn(r, r, generator=generator))
    odd, even = Q[0::2], Q[1::2]
    A = (torch.randn(inputs, r // 2, generator=generator) @ odd).T / 10
    B = (torch.randn(r // 2, outputs, generator=generator).T @ even) / 10
    return A.contiguous(), B.contiguous()
