"""Programs that fail or are ended in the middle, on a GPU that is faked."""

import pytest

from tests.cuda_failures import (
    CASES,
    a_missing_fill_at_the_end_of_a_command_is_a_named_stall,
)
from tests.emulated import gpu_plan
from tests.fake_cupy import Fake
from tests.fake_open import Opener


@pytest.mark.parametrize("name", CASES)
def test_on_a_fake_gpu(name: str, fake: Fake) -> None:
    CASES[name](Opener(fake), gpu_plan)


@pytest.mark.xfail(
    reason="nobody closes the ring of a CTA whose producer is through while consumers wait",
)
def test_a_missing_fill_at_the_end_of_a_command_is_a_named_stall(fake: Fake) -> None:
    a_missing_fill_at_the_end_of_a_command_is_a_named_stall(Opener(fake), gpu_plan)
