from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
MINI = ROOT / "examples" / "mini"
LABELS = ("O", "B-DNA", "I-DNA", "B-protein", "I-protein")


def make_tiny_model(
    architecture: str = "roberta", dropout: float = 0.0, attention: str = "sdpa", seed: int = 0, **options
):
    """A small random token classifier that fits the embedded tokenizer, in evaluation mode."""
    from transformers import AutoConfig, AutoModelForTokenClassification

    # MPNet's and RoBERTa's positions start after the padding index, so 514 positions hold 512 tokens
    sizes = {"vocab_size": 8192, "max_position_embeddings": 514, "pad_token_id": 1}
    if architecture == "distilbert":
        sizes |= {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "dropout": dropout}
        sizes |= {"attention_dropout": dropout}
    else:
        sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = AutoConfig.for_model(architecture, **{**sizes, **options})
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForTokenClassification.from_config(config, attn_implementation=attention)
        with torch.no_grad():  # the usual initial weights (sd 0.02) make outputs too similar to show anything
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()
