"""Combine several updates of a layer into one: the weighted sum of scale·BA, exact or of lower rank."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lorakit.nn.weights import Update

COMBINATIONS = ("cat", "svd", "linear")


def without_start(update: Update, use_rslora: bool) -> Update:
    """Rewrite an update that counts from a start (PiSSA, OLoRA) as a plain one of twice the rank, with the same effect.

    scale·(BA - B₀A₀) = scale·[B, -B₀][A; A₀]. The scale stays, so alpha doubles (with rsLoRA: ·√2).
    """
    if update.start is None:
        return update
    A0, B0 = update.start
    A, B = torch.cat([update.A, A0.to(update.A)]), torch.cat([update.B, -B0.to(update.B)], dim=1)
    alpha = update.lora_alpha * (math.sqrt(2) if use_rslora else 2)
    return Update(A, B, alpha, update.scaling, update.magnitude)


def combine_updates(parts: Sequence[tuple[Update, float]], how: str, r: int | None) -> Update:
    """Make the update equal to Σ weight·scale·BA; its own scale is 1 (lora_alpha = r).

    Args:
        parts: updates of one layer with their weights.
        how: "cat" (exact, rank = sum of ranks), "svd" (best of rank r), or "linear" (Σ√w·A and Σ√w·B, equal ranks).
        r: rank for "svd"; None means the largest of the parts'.

    Raises:
        ValueError: "linear" with different ranks.
    """
    plain = [(without_start(update, use_rslora=False), weight) for update, weight in parts]
    if how == "linear":
        if len({len(update.A) for update, _ in plain}) > 1:
            ranks = ", ".join(str(len(update.A)) for update, _ in plain)
            raise ValueError(f'how="linear" needs adapters of equal rank, got {ranks}; use "cat" or "svd"')
        A = _weighted_sum([(u.A, math.copysign(math.sqrt(abs(w * u.scaling)), w)) for u, w in plain])
        B = _weighted_sum([(u.B, math.sqrt(abs(w * u.scaling))) for u, w in plain])
        return Update(A, B, len(A), 1.0)
    A = torch.cat([update.A for update, _ in plain])
    B = torch.cat([update.B * (weight * update.scaling) for update, weight in plain], dim=1)
    if how == "svd":
        A, B = _truncate(A, B, r or max(len(update.A) for update, _ in plain))
    return Update(A, B, len(A), 1.0)


def _weighted_sum(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    return torch.stack([tensor * weight for tensor, weight in parts]).sum(0)


def _truncate(A: Tensor, B: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The best rank-r factors of BA, by QR of both factors and a small SVD; padded with zeros if BA has lower rank."""
    shape_A, shape_B = (r, *A.shape[1:]), (B.shape[0], r, *B.shape[2:])
    Q_B, R_B = torch.linalg.qr(B.flatten(1))
    Q_A, R_A = torch.linalg.qr(A.flatten(1).T)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T)
    k = min(r, len(S))
    root = S[:k].sqrt()
    new_A, new_B = A.new_zeros(r, A.flatten(1).shape[1]), B.new_zeros(B.shape[0], r)
    new_A[:k], new_B[:, :k] = root[:, None] * (Vh[:k] @ Q_A.T), (Q_B @ U[:, :k]) * root
    return new_A.view(shape_A), new_B.view(shape_B)
