"""Exports of a trained tagger to what other programs load; each proves itself before it is kept."""
