"""The rules of verify_plan about what may be fused, and the limits of its proofs."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from ark_dist.core import verify_memory, verify_order, verify_plan, verify_tasks
from ark_dist.core.builder import GraphBuilder, Value
from ark_dist.core.errors import PlanError
from ark_dist.core.plan import Method, Plan
from ark_dist.core.target import cpu_target
from ark_dist.core.task import Group
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.plan_models import at, block, changed, eager, loop, matmul, setting

SIZE = 6


class Sketch(GraphBuilder):
    """A builder with an input `x` and a state `s`, and a plan that fuses nothing."""

    def __init__(self, shape: tuple[int, int] = (SIZE, SIZE)) -> None:
        super().__init__("sketch")
        self.x = self.tensor(shape, "fp32", name="x")
        self.s = self.state(shape, "fp32", name="s")

    def relu(self, value: Value) -> Value:
        return self.apply("relu", [value])

    def transposed(self, value: Value) -> Value:
        return self.apply("transpose", [value], {"perm": (1, 0)})

    def plan(self, workers: int = 1) -> Plan:
        return make_plan(self.freeze(), eager(cpu_target(workers)), PlanOptions(is_fused=False))


def fused(plan: Plan, *groups: Sequence[int]) -> Plan:
    """Put the nodes into these groups; each has the tiles and effect of its last node."""

    def change(method: Method) -> Method:
        old = {group.nodes[-1]: group for group in method.groups}
        made = [Group(i, tuple(n), old[n[-1]].effect) for i, n in enumerate(groups)]
        tasks = [
            replace(task, group=group.id)
            for group in made
            for task in method.tasks
            if task.group == old[group.nodes[-1]].id
        ]
        numbered = tuple(replace(task, id=i) for i, task in enumerate(tasks))
        return replace(method, groups=tuple(made), tasks=numbered)

    return changed(plan, change)


def refuse(plan: Plan, text: str) -> None:
    with pytest.raises(PlanError, match=text):
        verify_plan.verify_plan(plan)


def test_elements_of_an_output_may_not_share_memory() -> None:
    sketch = Sketch()
    sketch.apply("copy", [sketch.x], output=sketch.s)
    plan = sketch.plan()
    view = replace(plan.methods[0].nodes[0].output, strides=(2, 1))
    refuse(at("nodes", 0, output=view)(plan), "elements of its output share memory")


def test_a_result_inside_a_group_has_one_writer() -> None:
    sketch = Sketch()
    sketch.apply("add", [sketch.relu(sketch.x), sketch.relu(sketch.x)])
    plan = sketch.plan()
    view = plan.methods[0].nodes[0].output
    plan = at("nodes", 1, output=view)(at("nodes", 2, inputs=(view, view))(plan))
    refuse(fused(plan, (1,), (0, 2)), "is written by several nodes")


def test_a_result_that_others_come_after_is_in_memory() -> None:
    sketch = Sketch()
    early = sketch.relu(sketch.x)
    late = sketch.apply("identity", [sketch.x], deps=[early])
    sketch.apply("add", [early, late])
    refuse(fused(sketch.plan(), (0, 1)), "has to be in memory before node 1 runs")


def test_a_result_inside_a_group_is_read_as_it_was_made() -> None:
    sketch = Sketch()
    value = sketch.relu(sketch.x)
    sketch.apply("add", [value, sketch.transposed(value)])
    refuse(fused(sketch.plan(), (0, 1)), "is read by node 1 through another view")


def test_fusing_may_not_move_a_read_behind_a_write() -> None:
    sketch = Sketch()
    value = sketch.relu(sketch.s)
    sketch.apply("copy", [sketch.x], output=sketch.s)
    sketch.apply("add", [value, sketch.x])
    text = "group 1: node 0 would read 's' after node 1 wrote it; it was built before"
    refuse(fused(sketch.plan(), (1,), (0, 2)), text)


def test_a_group_may_not_read_its_output_through_another_view() -> None:
    sketch = Sketch()
    sketch.apply("copy", [sketch.relu(sketch.transposed(sketch.s))], output=sketch.s)
    refuse(fused(sketch.plan(), (0, 1)), "node 0 reads 's', which the group writes")


def test_a_tile_may_not_read_what_other_tiles_write() -> None:
    sketch = Sketch((2, 128))
    weight = sketch.parameter((128, 128), "fp32")
    product = {"transpose_input": False, "transpose_other": False, "is_relu": False}
    sketch.apply("matmul", [sketch.relu(sketch.s), weight], product, output=sketch.s)
    refuse(fused(sketch.plan(2), (0, 1)), "node 0 reads what other tiles of its group write")


def test_a_node_whose_result_nobody_uses_is_no_part_of_a_group() -> None:
    sketch = Sketch()
    sketch.relu(sketch.x)
    sketch.apply("copy", [sketch.x])
    plan = sketch.plan()
    unused = plan.methods[0].nodes[0].output.buffer
    buffers = list(plan.buffers)
    buffers[unused] = replace(buffers[unused], kind="activation")
    text = r"what it touches can't be told: .* nothing in the group uses node 0 \(relu\)"
    refuse(fused(replace(plan, buffers=tuple(buffers)), (0, 1)), text)


def test_all_nodes_of_a_group_use_the_same_part_of_a_result() -> None:
    sketch = Sketch()
    value = sketch.relu(sketch.x)
    matmul(sketch, value, value)
    refuse(
        fused(sketch.plan(2), (0, 1)), "node 1 needs another part of a result than its group makes"
    )


def test_tiles_need_not_form_a_grid() -> None:
    plan = make_plan(loop(), eager(cpu_target(3)))
    for task, box in enumerate((((0, 4), (0, 4)), ((4, 8), (0, 2)), ((4, 8), (2, 4)))):
        plan = at("tasks", task, box=box)(plan)
    # They cover the output; what they write is another matter.
    refuse(plan, r"task 0: writes .*; it must be")


LIMITS: dict[str, tuple[object, str, int, str]] = {
    "groups": (verify_tasks, "MAX_GROUPS_PER_NODE", 0, "node 0 is in 3 groups; at most 0 work"),
    "moved reads": (verify_tasks, "MAX_MOVED_READS", -1, "groups reach over 0 writes"),
    "clocks": (verify_plan, "MAX_CLOCK_ENTRIES", 1, "to prove its order takes .* clocks"),
    "pairs": (verify_order, "MAX_PAIRS", 0, "is touched in too many pieces to prove their order"),
    "tile pairs": (verify_order, "MAX_TILE_PAIRS", 0, "has too many tiles to prove their order"),
    "pieces": (verify_memory, "MAX_PIECES", 0, "overlap in too many pieces to prove"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_plan_too_large_to_be_checked_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, limit, value, text = LIMITS[name]
    plan = make_plan(block(), eager(cpu_target(2)))
    verify_plan.verify_plan(plan)
    monkeypatch.setattr(module, limit, value)
    refuse(plan, text)


def test_irregular_tiles_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_tasks, "MAX_IRREGULAR_TILES", 2)
    plan = make_plan(loop(), eager(cpu_target(3)))
    for task, box in enumerate((((0, 4), (0, 4)), ((4, 8), (0, 2)), ((4, 8), (2, 4)))):
        plan = at("tasks", task, box=box)(plan)
    refuse(plan, "3 tiles form no grid; at most 2 may")


def test_a_proof_in_blocks_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(loop(), eager(cpu_target(2)))
    bare = setting(waits=((),) * len(plan.methods[0].tasks))(plan)
    found = list(verify_plan.plan_problems(bare))
    monkeypatch.setattr(verify_order, "BLOCK_ENTRIES", 1)
    assert found
    assert list(verify_plan.plan_problems(bare)) == found
