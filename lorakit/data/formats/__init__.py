"""Readers of corpus files, one module per format. Each yields `text.Row`s in the file's own tagging scheme."""
