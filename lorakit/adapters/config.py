"""LoRA's settings and their defaults: the arguments of `apply_lora`, checked, under PEFT's names."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

ALL_LINEAR = "all-linear"
BIASES = ("none", "all", "lora_only")
INITS = ("gaussian", "orthogonal", "pissa", "pissa_niter_[steps]", "olora")


@dataclass(frozen=True)
class LoRAConfig:
    """One adapter's settings, checked. Names are those of PEFT's LoraConfig; defaults are every caller's."""

    r: int = 16  # rank of the update
    lora_alpha: float = 32  # the update is scaled by alpha/r
    lora_dropout: float = 0.0  # probability
    target_modules: str | tuple[str, ...] | None = ALL_LINEAR  # None: query and value, by architecture
    bias: str = "none"
    modules_to_save: tuple[str, ...] | None = None  # None: the detected head
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: tuple[int, ...] | None = None  # None: all
    layers_pattern: tuple[str, ...] = ()  # names of the lists that hold the layers; (): any
    rank_pattern: Mapping[str, int] = field(default_factory=dict)  # regex for a name's last parts -> its r
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False  # scale by alpha/√r instead (arXiv:2312.03732)
    use_dora: bool = False  # train a magnitude per output (arXiv:2402.09353)
    init_lora_weights: bool | str = True
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None = None  # rows of the token table

    def __post_init__(self) -> None:
        _check_rank("r", self.r)
        _check_alpha("lora_alpha", self.lora_alpha)
        if isinstance(self.lora_dropout, bool) or not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be a probability from 0 to below 1, got {self.lora_dropout!r}")
        if self.bias not in BIASES:
            raise ValueError(f"bias must be one of {', '.join(BIASES)}, got {self.bias!r}")
        if isinstance(self.modules_to_save, str):
            raise ValueError(f"modules_to_save must be a list of names, got {self.modules_to_save!r}")
        if isinstance(self.layers_to_transform, int):
            object.__setattr__(self, "layers_to_transform", (self.layers_to_transform,))
        if isinstance(self.layers_pattern, str):
            object.__setattr__(self, "layers_pattern", (self.layers_pattern,))
        for name in ("target_modules", "modules_to_save", "exclude_modules", "layers_to_transform", "layers_pattern"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        if self.target_modules is not None and not self.target_modules:
            raise ValueError(
                f"target_modules is empty; leave it out for {ALL_LINEAR!r}, or pass None for the attention's query and "
                "value"
            )
        regex = isinstance(self.target_modules, str) and self.target_modules != ALL_LINEAR
        if regex and self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform goes with a list of target_modules, or {ALL_LINEAR!r}; a regex can name the "
                "layers itself"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern says where layers_to_transform counts; give both")
        object.__setattr__(self, "trainable_token_indices", checked_tokens(self.trainable_token_indices))
        for key, value in self.rank_pattern.items():
            _check_rank(f"rank_pattern[{key!r}]", value)
        for key, value in self.alpha_pattern.items():
            _check_alpha(f"alpha_pattern[{key!r}]", value)
        for rank in (self.r, *self.rank_pattern.values()):
            check_init(self.init_lora_weights, rank)

    def rank_of(self, name: str) -> int:
        """Rank of the update of the layer with this full name."""
        return _first_match(self.rank_pattern, name, self.r)

    def alpha_of(self, name: str) -> float:
        """lora_alpha of the layer with this full name."""
        return _first_match(self.alpha_pattern, name, self.lora_alpha)

    def scaling(self, r: int, lora_alpha: float) -> float:
        """The factor on BA for a layer of this rank and alpha."""
        return lora_alpha / math.sqrt(r) if self.use_rslora else lora_alpha / r


def _check_rank(what: str, r: object) -> None:
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ValueError(f"{what} must be an integer of at least 1, got {r!r}")


def _check_alpha(what: str, alpha: object) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not (0 < alpha < math.inf):
        raise ValueError(f"{what} must be a positive number, got {alpha!r}")


def checked_tokens(given: object) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    """`trainable_token_indices`, with tuples.

    Raises:
        ValueError: it is none of the forms that are allowed, or repeats a token.
    """
    if given is None or (isinstance(given, Sequence | Mapping) and not given):
        return None
    if isinstance(given, Mapping) and not any(isinstance(tokens, Mapping) for tokens in given.values()):
        return {str(table): checked_tokens(tokens) or () for table, tokens in given.items()}
    if (
        not isinstance(given, Sequence)
        or isinstance(given, str)
        or any(isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in given)
    ):
        raise ValueError(
            f"trainable_token_indices must be numbers of tokens, such as [8192, 8193], or a mapping of token tables to"
            f" such lists, got {given!r}; tokenizer.convert_tokens_to_ids gives the numbers"
        )
    if repeated := sorted({token for token in given if list(given).count(token) > 1}):
        raise ValueError(f"trainable_token_indices has {repeated[0]} more than once; name each token once")
    return tuple(given)


def pattern_matches(pattern: str, name: str) -> bool:
    """PEFT's rule for rank_pattern and alpha_pattern: a regex for the end of the name."""
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _first_match(patterns: Mapping[str, float], name: str, default: float) -> float:
    return next((value for pattern, value in patterns.items() if pattern_matches(pattern, name)), default)


def check_init(how: bool | str, r: int) -> None:
    """Raise ValueError unless `how` is an initialization that exists and works with rank r."""
    known = isinstance(how, bool) or how in INITS[:3] + INITS[4:] or pissa_steps(how) is not None
    if not known:
        raise ValueError(f"init_lora_weights must be True, False, {', '.join(INITS)}; got {how!r}")
    if how == "orthogonal" and r % 2:
        raise ValueError(f'init_lora_weights="orthogonal" needs an even rank, got r={r}')


def pissa_steps(how: bool | str) -> int | None:
    """Power iterations of "pissa_niter_4"; None for everything else."""
    found = re.fullmatch(r"pissa_niter_(\d+)", str(how))
    return int(found[1]) if found else None
