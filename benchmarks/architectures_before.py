"""What became of each architecture by the defaults of `lorakit train` at commit 2a9e5fd, with the same tiny models."""

PACKED = frozenset(
    """bert roberta xlm-roberta camembert electra distilbert albert eurobert ernie nomic_bert gte jina_embeddings_v3
    data2vec-text roberta-prelayernorm roc_bert xlm-roberta-xl xmod t5""".split()
)
REFUSED = frozenset(  # packed rows, and there was no flag for plain ones
    """modernbert layoutlm esm mobilebert gpt2 llama qwen2 qwen3 gemma mistral phi smollm3 gpt_neox ultrabert biogpt
    persimmon qwen3_moe""".split()
)
NOT_LOADED = frozenset(  # always asked for sdpa
    """mpnet deberta deberta-v2 longformer big_bird funnel luke roformer layoutlmv3 lilt markuplm canine convbert fnet
    flaubert xlm xlnet megatron-bert mra rembert squeezebert yoso gemma2 bloom openai_privacy_filter""".split()
)
PLAIN_DIFFERED = frozenset("funnel canine convbert fnet mobilebert yoso".split())  # from the sentence alone, in silence


def before(name: str) -> str:
    """A word or two for the table."""
    for what, names in (("packed", PACKED), ("refused", REFUSED), ("not loaded", NOT_LOADED)):
        if name in names:
            return f"{what}; plain rows differed" if name in PLAIN_DIFFERED else what
    return "–"
