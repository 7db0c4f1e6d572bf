"""Data: corpora, tags, tokenization and packing."""
