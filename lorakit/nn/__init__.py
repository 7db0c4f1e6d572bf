"""Layers: adapted layers, their fused and reference forms, and the operators under them."""
