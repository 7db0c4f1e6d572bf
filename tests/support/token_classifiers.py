"""Tiny random token classifiers of 60 architectures, as transformers builds them, which fit the embedded tokenizer."""

from collections.abc import Mapping

import torch
from torch import nn

from tests.support.tiny import LABELS

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TOKENS = {"vocab_size": 8192, "max_position_embeddings": 514, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
DECODER = {"num_key_value_heads": 1, "head_dim": 16}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 514}
XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 2}
MARKERS = {"cls_token_id": 0, "sep_token_id": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW = {"sliding_window": 16}  # shorter than a sentence of the tests, so that it matters

OPTIONS: dict[str, Mapping[str, object]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "electra": {"embedding_size": 24},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "albert": {"embedding_size": 24},
    "mpnet": {},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "deberta-v2": {  # as deberta-v3-base has them
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 8,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "max_relative_positions": -1,
        "type_vocab_size": 0,
    },
    "modernbert": {**MARKERS, "local_attention": 8},
    "eurobert": DECODER,
    "ernie": {},
    "nomic_bert": {},
    "gte": {},
    "jina_embeddings_v3": {},
    "longformer": {"attention_window": 8},
    "big_bird": {},
    "funnel": {
        "d_model": 32,
        "n_head": 2,
        "d_head": 16,
        "d_inner": 64,
        "block_sizes": [1, 1],
        "num_hidden_layers": None,
    },
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 32},
    "roformer": {},
    "layoutlm": {},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "visual_embed": False},
    "lilt": {"hidden_size": 48},
    "markuplm": {},
    "canine": {"num_hash_functions": 2, "num_hash_buckets": 64, "downsampling_rate": 4, "local_transformer_stride": 16},
    "convbert": {"embedding_size": 32},
    "data2vec-text": {},
    "esm": {"position_embedding_type": "rotary", "token_dropout": True, "mask_token_id": 4},
    "fnet": {},
    "flaubert": XLM,
    "xlm": XLM,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "max_position_embeddings": None},
    "megatron-bert": {},
    "mobilebert": {"embedding_size": 32, "intra_bottleneck_size": 32},
    "mra": {},
    "rembert": {"input_embedding_size": 24},
    "roberta-prelayernorm": {},
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "squeezebert": {"embedding_size": 32},
    "xlm-roberta-xl": {},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "yoso": {},
    "gpt2": GPT2,
    "llama": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "gemma": DECODER,
    "gemma2": {**DECODER, **WINDOW},
    "mistral": {**DECODER, **WINDOW},
    "phi": {},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2},
    "smollm3": DECODER,
    "gpt_neox": {},
    "bloom": {"n_layer": 2, "n_head": 2},
    "openai_privacy_filter": {**DECODER, **WINDOW, "num_local_experts": 4},
    "ultrabert": {"layer_types": ["sliding_attention", "full_attention"], **WINDOW},
    "biogpt": {},
    "persimmon": {},
    "qwen3_moe": {**DECODER, **EXPERTS},
}


def build(name: str, attention: str | None = None, **more: object) -> nn.Module:
    """The model in evaluation mode, always with the same weights; the attention is transformers' choice if not given.

    The usual initial weights (sd 0.02) would make outputs too similar to show anything, so noise is added.
    """
    from transformers import AutoConfig, AutoModelForTokenClassification

    options = {**SIZES, **TOKENS, **OPTIONS[name], **more}
    config = AutoConfig.for_model(name, **{key: value for key, value in options.items() if value is not None})
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForTokenClassification.from_config(config, attn_implementation=attention)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:  # RoFormer's table of sines is frozen
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()
