"""Adapters: what is adapted, how an adapter starts, lives in a model, and is stored."""
