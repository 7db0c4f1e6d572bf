"""Counts in messages: "1 sentence", "1,200 sentences"."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and what it counts, in the singular or the plural.

    Example:
        from lorakit._counts import counted
        counted(1, "tag breaks", "tags break"), counted(1200, "sentence")  # ('1 tag breaks', '1,200 sentences')

    Args:
        one: what follows a 1; it may contain the verb.
        many: what follows any other number; by default `one` with an s.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
