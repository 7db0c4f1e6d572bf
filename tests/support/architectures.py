"""Tiny random models of many architectures, with inputs: what the LoRA tests run on. All are built offline."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn

WIDTH = 16
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {**SMALL, "vocab_size": 40, "max_position_embeddings": 24, "num_labels": 3, "pad_token_id": 0}
DECODER = {**TEXT, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
SEQ2SEQ = {"vocab_size": 40, "pad_token_id": 0, "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2}


@dataclass(frozen=True)
class Architecture:
    """How to build one tiny model."""

    config: str  # class names in transformers
    model: str
    options: Mapping[str, object]
    head: tuple[str, ...]  # the modules that are its task head
    targets: tuple[str, ...]  # query and value, by hand

    def build(self) -> nn.Module:
        """The model in eval mode, without dropout, always with the same weights, none of them zero or one."""
        config = getattr(transformers, self.config)(**self.options)
        for name in vars(config):
            if "dropout" in name or name.endswith("_drop") or name.endswith("pdrop"):
                setattr(config, name, 0.0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, self.model)(config).eval()
            for module in model.modules():
                if isinstance(module, nn.Dropout):  # some heads have one that is not in the configuration
                    module.p = 0.0
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.1 * torch.randn_like(parameter)
        return model


def _text(kind: str, task: str = "TokenClassification", head: str = "classifier", targets: str = "query value", **more):
    return Architecture(
        f"{kind}Config", f"{kind}For{task}", {**TEXT, **more}, tuple(head.split()), tuple(targets.split())
    )


def _decoder(kind: str, task: str = "CausalLM", head: str = "", **more: object) -> Architecture:
    return _text(kind, task, head, "q_proj v_proj", **{**DECODER, **more})


BERT_LIKE = {"type_vocab_size": 1}

ARCHITECTURES: dict[str, Architecture] = {
    "bert": _text("Bert"),
    "bert-classifier": _text("Bert", "SequenceClassification"),
    "roberta": _text("Roberta"),
    "roberta-classifier": _text("Roberta", "SequenceClassification"),
    "roberta-mlm": _text("Roberta", "MaskedLM", ""),
    "xlm-roberta": _text("XLMRoberta"),
    "camembert": _text("Camembert"),
    "electra": _text("Electra", embedding_size=12),
    "distilbert": Architecture(
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        {"vocab_size": 40, "max_position_embeddings": 24, "n_layers": 2, "n_heads": 2, "dim": 16, "hidden_dim": 24},
        ("pre_classifier", "classifier"),
        ("q_lin", "v_lin"),
    ),
    "albert": _text("Albert", embedding_size=12),
    "modernbert": _text(
        "ModernBert",
        targets="Wqkv",
        head="head classifier",
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "deberta": _text("Deberta", targets="in_proj", relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "deberta-v2": _text("DebertaV2", targets="query_proj value_proj"),
    "mpnet": _text("MPNet", targets="q v"),
    "layoutlm": _text("LayoutLM"),
    "roformer": _text("RoFormer", embedding_size=16),
    "bert-qa": _text("Bert", "QuestionAnswering", "qa_outputs", num_labels=2),
    "gpt2": Architecture(
        "GPT2Config",
        "GPT2ForTokenClassification",
        {
            "vocab_size": 40,
            "n_positions": 24,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        ("classifier",),
        ("c_attn",),
    ),
    "gpt2-lm": Architecture(
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": 40,
            "n_positions": 24,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        (),
        ("c_attn",),
    ),
    "llama": _decoder("Llama", "TokenClassification", "score"),
    "llama-lm": _decoder("Llama", tie_word_embeddings=False),
    "qwen2": _decoder("Qwen2", "TokenClassification", "score"),
    "qwen3": _decoder("Qwen3"),
    "mistral": _decoder("Mistral", "SequenceClassification", "score"),
    "gemma": _decoder("Gemma"),
    "phi": Architecture(
        "PhiConfig",
        "PhiForCausalLM",
        {**TEXT, "bos_token_id": 1, "eos_token_id": 2},
        (),
        ("q_proj", "v_proj", "fc1", "fc2"),
    ),
    "opt": Architecture(
        "OPTConfig",
        "OPTForCausalLM",
        {**TEXT, "ffn_dim": 24, "word_embed_proj_dim": 16, "bos_token_id": 1, "eos_token_id": 2},
        (),
        ("q_proj", "v_proj"),
    ),
    "gpt_neox": Architecture(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", {**TEXT, "bos_token_id": 1, "eos_token_id": 2}, (), ("query_key_value",)
    ),
    "t5": Architecture(
        "T5Config",
        "T5ForConditionalGeneration",
        {**SEQ2SEQ, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
        (),
        ("q", "v"),
    ),
    "bart": Architecture(
        "BartConfig",
        "BartForConditionalGeneration",
        {
            **SEQ2SEQ,
            "d_model": 16,
            "max_position_embeddings": 24,
            **{f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 24))},
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
        },
        (),
        ("q_proj", "v_proj"),
    ),
    "whisper": Architecture(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {
            **SEQ2SEQ,
            "d_model": 16,
            "num_mel_bins": 4,
            "max_source_positions": 8,
            "max_target_positions": 24,
            **{f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in (("layers", 1), ("ffn_dim", 24))},
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        (),
        ("q_proj", "v_proj"),
    ),
    "vit": Architecture(
        "ViTConfig",
        "ViTForImageClassification",
        {**SMALL, "image_size": 8, "patch_size": 4, "num_labels": 3},
        ("classifier",),
        ("q_proj", "v_proj"),
    ),
}


def inputs_for(model: nn.Module) -> dict[str, Tensor]:
    """Inputs that the model takes, always the same."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 39, (2, 6), generator=generator)
    if type(model).__name__.startswith("ViT"):
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator).to(model.dtype)}
    if type(model).__name__.startswith("Whisper"):
        features = torch.randn(2, 4, 16, generator=generator).to(model.dtype)
        return {"input_features": features, "decoder_input_ids": ids}
    return {"input_ids": ids, "decoder_input_ids": ids} if model.config.is_encoder_decoder else {"input_ids": ids}


def output_of(model: nn.Module, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
    """The model's logits for these inputs or its own, all its outputs side by side."""
    out = model(**(inputs or inputs_for(model)))
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits])
    return out.logits
