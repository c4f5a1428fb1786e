"""Which tests run under compute-sanitizer, and how long they wait for kernels there.

It makes kernels up to 100 times slower: `ARK_DIST_TIMEOUT_S=6000` lets tests wait as many times
longer as that is above its default.
"""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

from ark_dist.core.settings import read_settings

# Of one test, as pyproject.toml has it.
TEST_S = 600.0
# How many times slower than usual the environment expects kernels to be.
SLOWNESS = max(1.0, read_settings().timeout_s / read_settings({}).timeout_s)


def patient(seconds: float) -> float:
    """A limit that usually is this long."""
    return seconds * SLOWNESS


def marked(names: Iterable[str], sanitized: Collection[str]) -> list[Any]:
    """Parameters of a test, some of which run under compute-sanitizer as well."""
    some = [name for name in names if name in sanitized]
    assert len(some) == len(sanitized), f"only {some} of {sanitized} are there"
    marks = {name: pytest.mark.sanitizer for name in some}
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]
