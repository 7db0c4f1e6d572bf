"""Training: the loop, evaluation, and what they stand on."""
