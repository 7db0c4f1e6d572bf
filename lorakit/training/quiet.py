"""transformers without its warnings and bars, while a model is loaded or exported."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """While active, transformers shows no warnings (a new head is missing from the checkpoint, as expected) or bars.

    Without a network, the hub client's retries are not shown either: the final error says it all.
    """
    from transformers.utils import logging as theirs  # heavy, so only when a model is loaded

    verbosity, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        hub.setLevel(level)
        theirs.set_verbosity(verbosity)
        if bars:
            theirs.enable_progress_bar()
