"""Turn long lists of names into the first of them and a count."""

from collections.abc import Sequence

MAX_LISTED = 20


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
