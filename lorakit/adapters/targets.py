"""LoRA targets: which layers to adapt, defaults per architecture, and the model's task head."""

import re
from collections.abc import Iterable, Sequence

from torch import nn

from lorakit.adapters.config import ALL_LINEAR
from lorakit.adapters.names import listing, name_matches, named_modules, submodule, unmatched, unwrapped
from lorakit.adapters.unused import unused_layers
from lorakit.nn.weights import is_adaptable

_QUERY_VALUE = ("query", "value")
_Q_V_PROJ = ("q_proj", "v_proj")

DEFAULT_TARGETS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        """albert bert big_bird camembert convbert data2vec-text electra ernie layoutlm layoutlmv3 lilt longformer luke
        megatron-bert mobilebert nystromformer rembert roberta roc_bert roformer splinter xlm-roberta xlm-roberta-xl
        xmod""".split(),
        _QUERY_VALUE,
    ),
    **dict.fromkeys(
        """bart beit clip cohere deit dinov2 ernie4_5 eurobert gemma gemma2 gemma3_text glm gpt_neo gptj granite helium
        hubert llama llama4_text m2m_100 marian mbart mistral mixtral olmo olmo2 opt pegasus qwen2 qwen2_moe qwen3
        qwen3_moe siglip smollm3 stablelm starcoder2 swin t5gemma vit wav2vec2 whisper xglm""".split(),
        _Q_V_PROJ,
    ),
    "phi": (*_Q_V_PROJ, "fc1", "fc2"),  # as PEFT
    "phi3": ("qkv_proj",),
    "codegen": ("qkv_proj",),
    **dict.fromkeys("bloom falcon gpt_neox persimmon".split(), ("query_key_value",)),
    **dict.fromkeys("gpt2 gpt_bigcode".split(), ("c_attn",)),
    **dict.fromkeys("t5 mt5 umt5".split(), ("q", "v")),
    "mpnet": ("q", "v"),
    "mpt": ("Wqkv",),
    "modernbert": ("Wqkv",),
    "distilbert": ("q_lin", "v_lin"),
    "deberta": ("in_proj",),
    "deberta-v2": ("query_proj", "value_proj"),
}
"""Attention query and value (or the fused projection that holds them), by transformers' `config.model_type`."""


def default_targets(model: nn.Module) -> tuple[str, ...]:
    """The default target names for the model's architecture.

    Raises:
        ValueError: the architecture is not in the table; the message names the layers that could be targeted.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in DEFAULT_TARGETS:
        return DEFAULT_TARGETS[kind]
    what = f"model type {kind!r}" if kind else f"{type(model).__name__}"
    raise ValueError(
        f"no default target_modules for {what}; name some: {listing(adaptable_names(model))}; or pass {ALL_LINEAR!r}"
    )


def adaptable_names(model: nn.Module) -> list[str]:
    """Last name parts of all layers that can be adapted, in the model's order, without repeats."""
    names = (name.rpartition(".")[2] for name, module in named_modules(model) if is_adaptable(module))
    return list(dict.fromkeys(names))


def find_head(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules outside the pretrained body: the task head, which has to be trained in full.

    The body is what transformers calls `base_model`, or the one pretrained model inside the user's own module. A
    language-model head is not a task head: modules that hold the output embeddings or only tied parameters are left
    out. Returns () if the model has no body to tell a head from.
    """
    path = _body_path(model)
    if path is None:
        return ()
    body = submodule(model, path)
    if body is model or any(_has_output_embeddings(m) for m in model.modules()):
        return ()
    inside = {id(p) for p in body.parameters()}
    outside: list[str] = []

    def walk(module: nn.Module, prefix: str) -> None:
        for name, child in unwrapped(module).named_children():
            full = f"{prefix}{name}"
            if full == path:
                continue
            if path.startswith(f"{full}."):
                walk(child, f"{full}.")
            elif any(id(p) not in inside for p in child.parameters()):
                outside.append(full)

    walk(model, "")
    return tuple(outside)


def _body_path(model: nn.Module) -> str | None:
    pretrained = [name for name, module in named_modules(model) if hasattr(module, "base_model_prefix")]
    top = [n for n in pretrained if not any(o != n and (o == "" or n.startswith(f"{o}.")) for o in pretrained)]
    if len(top) != 1:
        return None  # none, or several on the same level: no way to tell which is the body
    path, module = top[0], submodule(model, top[0])
    while (body := unwrapped(module.base_model)) is not module:
        inner = next(name for name, child in named_modules(module) if child is body)
        path, module = f"{path}.{inner}".lstrip("."), body
    return path


def _has_output_embeddings(module: nn.Module) -> bool:
    return hasattr(module, "base_model_prefix") and module.get_output_embeddings() is not None


def _unused_pooler(module: nn.Module) -> list[nn.Module]:
    """The layers of the body's pooler if this is a model that computes it for nothing: they would get no gradient.

    Token classifiers never use it. Question answering does not either if it predicts spans (`qa_outputs`); ViLT, LXMERT
    and TAPAS answer from the pooled output and have no such head.
    """
    kind = type(module).__name__
    spans = kind.endswith("ForQuestionAnswering") and hasattr(module, "qa_outputs")
    if not hasattr(module, "base_model_prefix") or not (spans or kind.endswith("ForTokenClassification")):
        return []
    pooler = getattr(module.base_model, "pooler", None)
    return list(pooler.modules()) if isinstance(pooler, nn.Module) else []


def find_modules(model: nn.Module, names: Iterable[str], what: str) -> tuple[str, ...]:
    """Full names of the modules that `names` (suffixes) match, in the model's order.

    Raises:
        ValueError: a name matches nothing.
    """
    names = list(names)
    every = [name for name, _ in named_modules(model) if name]
    for wanted in names:
        if not any(name_matches(name, wanted) for name in every):
            raise unmatched(what, wanted, (name.rpartition(".")[2] for name in every))
    return tuple(name for name in every if any(name_matches(name, wanted) for wanted in names))


def find_targets(
    model: nn.Module,
    target_modules: str | Sequence[str],
    exclude_modules: str | Sequence[str] = (),
    trained_in_full: Sequence[str] = (),
) -> tuple[str, ...]:
    """Full names of the layers to adapt, in the model's order.

    Args:
        model: the model to search.
        target_modules: name suffixes; or one regex for the full name; or "all-linear": every linear layer except the
            head, the output embeddings, a pooler whose output the model does not use, and layers that never run.
        exclude_modules: suffixes, or one regex, of layers to leave out.
        trained_in_full: modules trained in full (the head); nothing inside them is adapted.

    Raises:
        ValueError: a name or regex matches nothing, matches no layer that can be adapted, or matches a layer whose
            parent would bypass the update.
    """
    modules = {name: module for name, module in named_modules(model, remove_duplicate=False) if name}
    first = {id(module): name for name, module in named_modules(model)}  # a shared module goes by its first name
    layers = {name: module for name, module in modules.items() if is_adaptable(module) or _is_kin(module)}
    free = [n for n in layers if not any(n == head or n.startswith(f"{head}.") for head in trained_in_full)]

    if target_modules == ALL_LINEAR:
        left_out = {id(m.get_output_embeddings()) for m in model.modules() if _has_output_embeddings(m)}
        left_out |= {id(layer) for head in find_head(model) for layer in submodule(model, head).modules()}
        left_out |= {id(layer) for m in model.modules() for layer in _unused_pooler(m)}
        matched = [n for n in free if _is_linear(layers[n]) and id(layers[n]) not in left_out]
        # running compiled layers would compile them
        unused = () if any(unwrapped(m) is not m for m in model.modules()) else unused_layers(model, matched)
        if not (matched := [n for n in matched if n not in unused]):
            others = (n for n in free if is_adaptable(layers[n]) and id(layers[n]) not in left_out and n not in unused)
            names = list(dict.fromkeys(n.rpartition(".")[2] for n in others))
            instead = sum(isinstance(module, nn.Conv1d) for module in modules.values())
            why = f" ({instead} Conv1d instead, to which LoRA is not applied here)" if instead else ""
            raise ValueError(
                f"target_modules {ALL_LINEAR!r}: this model uses no linear layer outside its head{why}; train it in"
                f" full, or name other layers: {listing(names) if names else 'it has none that can be adapted'}"
            )
    elif isinstance(target_modules, str):
        matched = [n for n in free if _fullmatch(target_modules, n, "target_modules")]
        if not matched:
            raise _regex_unmatched(target_modules, free)
    else:
        for wanted in target_modules:
            _check_target(wanted, modules, layers, free)
        matched = [n for n in free if any(name_matches(n, t) for t in target_modules)]

    matched = _exclude(matched, exclude_modules)
    refused = {name: reason for name in matched if (reason := _why_not(modules, name))}
    if refused:
        name, reason = next(iter(refused.items()))
        if len(refused) == len(matched):  # Falcon's
            raise ValueError(
                f"target {name!r} {reason}, like every layer that target_modules matches; train the model in full"
                " (lorakit train --mode full), or name other layers"
            )
        fix = [*([] if isinstance(exclude_modules, str) else exclude_modules), *_shortest(refused, matched)]
        raise ValueError(
            f"target {name!r} {reason}; leave it out of target_modules, or in Python name it: exclude_modules={fix}"
        )
    _refuse_half_of_a_tie(layers, matched)
    return tuple(dict.fromkeys(first[id(layers[name])] for name in matched))


def keep_layers(targets: Sequence[str], indices: Sequence[int], lists: Sequence[str] = ()) -> tuple[str, ...]:
    """The targets in the layers with these indices.

    Args:
        targets: full names.
        indices: layer indices; each must hold a target.
        lists: names of the module lists whose index counts, such as `layer`; () means the first number in a name.

    Raises:
        ValueError: an index without a target, or a list that no target is in.
    """
    for name in lists:
        if not layer_indices(targets, [name]):
            raise unmatched("layers_pattern", name, (p for t in targets for p in t.split(".") if not p.isdigit()))
    index = layer_indices(targets, lists)
    there = sorted(set(index.values()))
    for wanted in indices:
        if wanted not in there:
            raise ValueError(f"layers_to_transform {wanted!r} matches no layer; the targets are in {there}")
    return tuple(t for t in targets if index.get(t) in set(indices))


def layer_indices(names: Iterable[str], lists: Sequence[str] = ()) -> dict[str, int]:
    """Name -> index of the layer it is in, for those in one of `lists` (() means in any list)."""
    patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in lists] or [r".*?\.[^.]*\.(\d+)\."]
    found = {name: next((int(m[1]) for p in patterns if (m := re.match(p, name))), None) for name in names}
    return {name: index for name, index in found.items() if index is not None}


def _is_kin(module: nn.Module) -> bool:
    """Whether it looks like a layer that can be adapted: if named as a target it must not be skipped silently."""
    return isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d) or _is_linear(module)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _fullmatch(pattern: str, name: str, what: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"{what} {pattern!r} is not a regular expression: {error}") from None


def _regex_unmatched(pattern: str, names: Sequence[str]) -> ValueError:
    plain = re.fullmatch(r"[\w., ]+", pattern)  # names: a list was meant
    hint = f"; for a list of names pass {[p for p in re.split('[, ]+', pattern) if p]}" if plain else ""
    return ValueError(
        f"target_modules {pattern!r} matches no layer: one string is a regular expression for the full name, such as "
        f"{listing(names, 3)}{hint}"
    )


def _check_target(wanted: str, modules: dict, layers: dict, free: Sequence[str]) -> None:
    if any(name_matches(n, wanted) for n in free):
        return
    if any(name_matches(n, wanted) for n in layers):
        raise ValueError(
            f"target_modules {wanted!r} is inside the head, which is trained in full; leave it out, or in "
            "Python pass modules_to_save=[] to adapt it instead"
        )
    kinds = {type(module).__name__ for name, module in modules.items() if name_matches(name, wanted)}
    if kinds:
        raise ValueError(
            f"target_modules {wanted!r} is a {' and a '.join(sorted(kinds))}, which cannot be adapted; "
            f"these can: {listing(list(dict.fromkeys(n.rpartition('.')[2] for n in free)))}"
        )
    raise unmatched("target_modules", wanted, (n.rpartition(".")[2] for n in free))


def _exclude(matched: list[str], exclude_modules: str | Sequence[str]) -> list[str]:
    if isinstance(exclude_modules, str):
        kept = [n for n in matched if not _fullmatch(exclude_modules, n, "exclude_modules")]
        if len(kept) == len(matched):
            raise ValueError(
                f"exclude_modules {exclude_modules!r} matches no target; one string is a regular expression for the "
                f"full name, such as {listing(matched, 3)}"
            )
    else:
        for wanted in exclude_modules:
            if not any(name_matches(n, wanted) for n in matched):
                raise unmatched("exclude_modules", wanted, (n.rpartition(".")[2] for n in matched))
        kept = [n for n in matched if not any(name_matches(n, e) for e in exclude_modules)]
    if not kept:
        raise ValueError("exclude_modules leaves no target")
    return kept


BYPASSED = {
    "DebertaEncoder": ("rel_embeddings",),
    "DebertaV2Encoder": ("rel_embeddings",),
    "WavLMAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "MambaMixer": ("x_proj", "dt_proj", "out_proj"),
    "FalconMambaMixer": ("x_proj", "dt_proj", "out_proj"),
    "JambaMambaMixer": ("x_proj", "dt_proj", "out_proj"),
}
"""Class in transformers -> layers whose weight it reads directly, always or in its fast path."""


def _why_not(modules: dict[str, nn.Module], name: str) -> str | None:
    """Why a target cannot be adapted: its parent would bypass the update, or its class is not known; None if it can."""
    owners = [modules.get(name[:i]) for i, character in enumerate(name) if character == "."]
    for owner in owners:
        if isinstance(owner, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            when = " in eval mode" if isinstance(owner, nn.TransformerEncoderLayer) else ""
            return (
                f"is inside an nn.{type(owner).__name__}, which reads its weight directly{when} and would bypass the "
                "update"
            )
    if owners and name.rpartition(".")[2] in BYPASSED.get(type(owners[-1]).__name__, ()):
        return f"is in a {type(owners[-1]).__name__}, which reads its weight directly and would bypass the update"
    if not is_adaptable(modules[name]):
        kind = type(modules[name]).__name__
        return f"is a {kind}, which computes something else than its base class and cannot be adapted"
    return None


def _shortest(names: Iterable[str], among: Iterable[str]) -> list[str]:
    """Last parts of the names if these match none of the others, otherwise the names."""
    names = list(names)
    last = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    others = (name for name in among if name not in names)
    return names if any(name_matches(name, part) for name in others for part in last) else last


def _refuse_half_of_a_tie(layers: dict[str, nn.Module], targets: Sequence[str]) -> None:
    """Raise if an embedding is a target and another one with the same table is not: their outputs would differ."""
    for name in targets:
        if isinstance(layers[name], nn.Embedding):
            twins = [n for n, m in layers.items() if isinstance(m, nn.Embedding) and m.weight is layers[name].weight]
            left = [n for n in twins if n not in targets]
            if left:
                raise ValueError(
                    f"target {name!r} shares its table with {', '.join(map(repr, left))}, which would not be adapted; "
                    "target all of them or none"
                )
