"""Plans of a few small models, compared with `tests/golden/*.plan` byte for byte.

Write them anew, after a change that is meant to alter plans, with

    python -m tests.test_golden_plans --write
"""

import difflib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ark_dist.core.plan import Plan
from ark_dist.core.target import cpu_target, wide_target
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.plan_models import addition, block, eager, loop, mlp, two_methods

GOLDEN = Path(__file__).parent / "golden"
MAX_DIFF_LINES = 60
PLANS: dict[str, Callable[[], Plan]] = {
    "model_tutorial": lambda: make_plan(addition(), cpu_target(1)),
    "module_tutorial_2_workers": lambda: make_plan(mlp(), cpu_target(2)),
    "loop_with_stop_depth_2": lambda: make_plan(loop(), eager(cpu_target(2)), PlanOptions(depth=2)),
    "two_methods": lambda: make_plan(two_methods(), eager(cpu_target(2))),
    "block_wide": lambda: make_plan(block(), eager(wide_target(6))),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_as_it_was(name: str) -> None:
    path = GOLDEN / f"{name}.plan"
    wanted, found = path.read_bytes(), str(PLANS[name]()).encode("ascii")
    if wanted == found:
        return
    diff = difflib.unified_diff(
        wanted.decode("ascii").splitlines(), found.decode("ascii").splitlines(),
        f"{path.name}, golden", f"{path.name}, now", lineterm="", n=2,
    )  # fmt: skip
    lines = list(diff)
    shown = "\n".join(lines[:MAX_DIFF_LINES])
    more = f"\n... {len(lines) - MAX_DIFF_LINES} more" if len(lines) > MAX_DIFF_LINES else ""
    pytest.fail(
        f"{shown}{more}\nif this is meant: python -m tests.test_golden_plans --write, "
        "and give the reason in the commit",
        pytrace=False,
    )


def test_every_golden_file_has_its_plan() -> None:
    assert sorted(p.name for p in GOLDEN.iterdir()) == sorted(f"{name}.plan" for name in PLANS)


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m tests.test_golden_plans --write")
    GOLDEN.mkdir(exist_ok=True)
    for name, make in PLANS.items():
        (GOLDEN / f"{name}.plan").write_bytes(str(make()).encode("ascii"))


if __name__ == "__main__":
    main()
