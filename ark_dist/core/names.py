"""Check users' names and keep them apart."""

MAX_NAME_CHARS = 512


def checked_name(name: object) -> str:
    """Return a user's name; TypeError or ValueError if it can't be one."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"name is {name!r}; it must be a non-empty string")
    if len(name) > MAX_NAME_CHARS:
        raise ValueError(f"name {name[:40]!r}... has {len(name)} characters; {MAX_NAME_CHARS} work")
    return name


class Names:
    """The names given out so far; a name that is taken gets a number: add, add_1, add_2."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._used

    def unique(self, base: str) -> str:
        """Return `base`, or the first numbered form of it that is free, and take it."""
        count = self._used.get(base, 0)
        name = base if count == 0 else f"{base}_{count}"
        while name in self._used:
            count += 1
            name = f"{base}_{count}"
        self._used[base] = count + 1
        self._used.setdefault(name, 1)
        return name
