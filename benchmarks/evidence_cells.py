"""The settings that evidence.py trains: what changes from cell to cell, in the order in which they run."""

from typing import Any

Cell = dict[str, Any]

QUERY_VALUE = ["query", "value"]
EMBEDDINGS = ["word_embeddings"]
ATTENTION = ["query", "key", "value", "attention.output.dense"]


def decoder(cell: Cell) -> str:
    """From probabilities to tags: cells that do not say are older than the choice."""
    return cell.get("config", {}).get("decode", "greedy")


def full(learning_rate: float, batch_size: int = 32, **more: Any) -> Cell:
    """A cell of full fine-tuning."""
    return {"mode": "full", "learning_rate": learning_rate, "batch_size": batch_size, **more}


def lora(
    learning_rate: float = 2e-3,
    batch_size: int = 32,
    *,
    r: int = 16,
    alpha: float = 16,
    targets: str | list[str] = "all-linear",
    start: str = "pissa",
    dropout: float | None = None,
    epochs: int | None = None,
    module_rates: dict[str, float] | None = None,
    cache: bool = False,
    decode: str | None = None,
    **options: Any,
) -> Cell:
    """A cell of LoRA.

    Args:
        start: "plain" (B = 0), "rslora" (B = 0, scaled by alpha/sqrt(r)), or a name that init_lora_weights takes.
        dropout: of the base; None keeps its own.
        epochs: None for those of the command line.
        cache: keep the output of the layers below LoRA's (`cache_prefix`).
        decode: from probabilities to tags; None for greedy, which cells without it were scored with.
        module_rates: rates of modules that do not train at `learning_rate`.
        options: further arguments of `apply_lora`.
    """
    options = {"r": r, "lora_alpha": alpha, "target_modules": targets, **options}
    if start == "rslora":
        options["use_rslora"] = True
    elif start != "plain":
        options["init_lora_weights"] = start
    cell = {"mode": "lora", "learning_rate": learning_rate, "batch_size": batch_size, "lora": options}
    config = {"module_learning_rates": module_rates} if module_rates else {}
    config |= {"cache_prefix": True} if cache else {}
    config |= {"decode": decode} if decode else {}
    chosen = {"dropout": dropout, "epochs": epochs, "config": config or None}
    return {**cell, **{name: value for name, value in chosen.items() if value is not None}}


def rates(embeddings: float) -> dict[str, float]:
    return {"word_embeddings": embeddings}


def embeddings_too(
    learning_rate: float, embeddings: float = 1e-4, batch_size: int = 8, r: int = 48, *, token_rows: str | None = None
) -> Cell:
    """LoRA on all linear layers beside the token table, without the base's dropout, with Viterbi tags.

    Args:
        embeddings: the rate of the token table.
        token_rows: "of the corpus" to train only the rows of tokens in its training sentences; None for all rows.
    """
    cell = lora(
        learning_rate,
        batch_size=batch_size,
        start="plain",
        r=r,
        alpha=2 * r,
        module_rates=rates(embeddings),
        dropout=0.0,
        decode="viterbi",
        **({} if token_rows else {"modules_to_save": EMBEDDINGS}),
    )
    return {**cell, "token_rows": token_rows} if token_rows else cell


SCREEN = [
    lora(2e-3),
    lora(2e-3, batch_size=16),
    full(5e-4),
    lora(2e-3, batch_size=16, start="plain"),
    full(5e-4, batch_size=16),
    lora(4e-3, batch_size=16),
    lora(4e-3, batch_size=16, start="plain"),
    lora(1e-3, batch_size=16),
    lora(2e-3, batch_size=16, r=32, alpha=32),
    lora(2e-3, batch_size=16, start="plain", alpha=32),
    lora(2e-3, batch_size=16, start="plain", r=8, alpha=16),
    full(2e-4, batch_size=16),
    lora(4e-3, batch_size=16, start="plain", alpha=32, targets=QUERY_VALUE),
    lora(2e-3, batch_size=8, start="plain", alpha=32),
    lora(2e-3, batch_size=16, start="plain", r=32, alpha=64),
    lora(2e-3, batch_size=16, start="plain", r=8, alpha=32),
    lora(2e-3, batch_size=16, start="plain", r=32, alpha=32),
    lora(2e-3, batch_size=16, start="plain", alpha=32, modules_to_save=EMBEDDINGS),
    full(1e-3, batch_size=16),
    lora(4e-3, batch_size=16, start="plain", r=8, alpha=16),
    full(3e-4, batch_size=16),
    lora(2e-3, batch_size=16, start="plain", alpha=32, modules_to_save=EMBEDDINGS, module_rates=rates(1e-3)),
    full(5e-4, batch_size=16, frozen=["embeddings"]),
    lora(2e-3, batch_size=16, start="plain", alpha=32, modules_to_save=EMBEDDINGS, module_rates=rates(5e-4)),
    full(5e-4, batch_size=8),
    lora(2e-3, batch_size=16, start="plain", r=4, alpha=8, modules_to_save=EMBEDDINGS, module_rates=rates(1e-3)),
    lora(2e-3, batch_size=16, start="plain", r=4, alpha=8),
    lora(2e-3, batch_size=16, start="plain", alpha=32, targets=ATTENTION),
    lora(2e-3, batch_size=16, start="rslora"),
    lora(1e-3, batch_size=16, start="plain", alpha=32, module_rates={"lora_B": 16e-3}),
    lora(1e-3, batch_size=16, start="plain", alpha=32),
    lora(2e-3, batch_size=16, start="plain", alpha=32, modules_to_save=["LayerNorm"]),
    lora(2e-3, batch_size=16, start="plain", r=64, alpha=128),
    lora(2e-3, batch_size=16, start="plain", r=1, alpha=2),
    lora(2e-3, batch_size=16, start="plain", alpha=32, layers_to_transform=[2, 3, 4, 5]),
    lora(2e-3, batch_size=16, start="plain", alpha=32, layers_to_transform=[3, 4, 5], dropout=0.0, cache=True),
    full(5e-4, batch_size=16, dropout=0.0),
]
# One seed of the whole corpus, validation only: what a tenth of the corpus cannot tell, such as how many epochs.
WHOLE = [
    full(5e-4, batch_size=16, epochs=4),
    lora(1.5e-3, batch_size=8, start="plain", r=32, alpha=64, modules_to_save=EMBEDDINGS, module_rates=rates(2e-4)),
    lora(2e-3, batch_size=16, start="plain", r=32, alpha=64, modules_to_save=EMBEDDINGS, module_rates=rates(3e-4)),
    lora(1e-3, batch_size=8, start="plain", r=32, alpha=64),
    lora(1e-3, batch_size=8, start="plain", r=32, alpha=64, modules_to_save=EMBEDDINGS, module_rates=rates(1e-4)),
    lora(5e-4, batch_size=8, start="plain", r=32, alpha=64, modules_to_save=EMBEDDINGS, module_rates=rates(1e-4)),
    lora(7e-4, batch_size=8, start="plain", r=48, alpha=96, modules_to_save=EMBEDDINGS, module_rates=rates(1e-4)),
    full(3e-4, batch_size=16, epochs=4),
    full(5e-4, batch_size=16, epochs=4, dropout=0.0),
    embeddings_too(5e-4, embeddings=3e-4),
    embeddings_too(5e-4, batch_size=4, token_rows="of the corpus"),
    full(3e-4, batch_size=16, config={"decode": "viterbi"}),
]
# What validation on the whole corpus chose: LoRA in two epochs of small batches against full fine-tuning in four. First
# with greedy tags; then, without the base's dropout for LoRA, with each sentence's most probable valid tags.
FINAL = [
    full(5e-4, batch_size=16, epochs=4),
    lora(7e-4, batch_size=8, start="plain", r=48, alpha=96, modules_to_save=EMBEDDINGS, module_rates=rates(1e-4)),
    full(5e-4, batch_size=16, epochs=4, config={"decode": "viterbi"}),
    full(3e-4, batch_size=16, epochs=4, config={"decode": "viterbi"}),  # better on validation, found after the others
    embeddings_too(7e-4),
]
