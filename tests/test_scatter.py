"""Caches grow at run time: what scatter writes, what it leaves, and what it refuses."""

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.core.errors import TaskError
from tests.movement_models import (
    MACHINES,
    Program,
    Rng,
    compute,
    fresh,
    random,
    read,
    running,
    turn,
)


@pytest.fixture
def rng() -> Rng:
    return fresh()


@pytest.mark.parametrize("dtype", ["fp16", "fp32", "int8"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("machine", MACHINES)
def test_a_cache_grows_by_a_step_each_turn(
    machine: tuple[str, int], rows: int, dtype: str, rng: Rng
) -> None:
    """The kernel counts the position itself; each turn reads the cache before and after."""
    batch, heads, length, width, step = 3, 2, 13, 5, 2
    model = ark.Model()
    x = model.tensor((batch, heads, step, width), dtype)
    first = random(rng, (batch, heads, length, width), dtype)
    cache = model.state(first.shape, dtype, init=first)
    at = model.state(rows, "int32", init=np.arange(rows))
    turns = model.state(1, dtype)
    before = model.keep(model.copy(cache[:, 1:, 2:-1]))
    assert model.scatter(cache, x + turns, at, axis=2) is cache
    after = model.keep(model.copy(cache.transpose((0, 2, 1, 3))))
    model.assign(at, at + step)
    model.assign(turns, turns + 1)
    data = random(rng, x.shape, dtype)

    want, last = first.copy(), first
    with running(model, machine) as session:
        for done, iterations in ((0, 1), (1, 3), (4, 1)):
            turn(session, [(x, data)], iterations)
            for i in range(done, done + iterations):
                last = want.copy()
                for b in range(batch):
                    start = i * step + (b if rows > 1 else 0)
                    want[b, :, start : start + step] = data[b] + np.array(i, want.dtype)
            assert np.array_equal(read(session, before), last[:, 1:, 2:-1])
            assert np.array_equal(read(session, cache), want)
            assert np.array_equal(read(session, after), want.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("machine", MACHINES)
def test_a_part_of_a_cache_is_written_and_the_rest_stays(
    machine: tuple[str, int], rng: Rng
) -> None:
    """The state is one layer's view of a larger one, and another layer is read in between."""
    model = ark.Model()
    first = random(rng, (2, 9, 4))
    both = model.state((2, 9, 4), init=first)
    at = model.scalar("position")
    x = model.tensor((3, 4))
    model.scatter(both[0], x, at, axis=0)
    model.scatter(both[1], both[0, 2:5] + 1, at, axis=0)
    data = random(rng, (3, 4))
    want = first.copy()
    with running(model, machine) as session:
        for position in (0, 6, 3):
            session.write(x.value.view, data)
            session.run(2, "forward", {"position": position})
            session.wait()
            want[0, position : position + 3] = data
            want[1, position : position + 3] = want[0, 2:5] + 1
            assert np.array_equal(read(session, both), want)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("bad", [-1, 7, 2**31 - 1, -(2**31)])
def test_a_position_outside_the_cache_writes_nothing(
    machine: tuple[str, int], bad: int, rng: Rng
) -> None:
    model = ark.Model()
    first = random(rng, (1, 9, 4))
    cache = model.state((1, 9, 4), init=first, name="cache")
    x, at = model.tensor((1, 3, 4)), model.tensor(1, "int32")
    model.scatter(cache, x, at, axis=-2)
    text = rf"\(scatter 'cache'\) of method 'forward', iteration 0: position {bad} is outside 0 t"
    with running(model, machine) as session:
        turn(session, [(x, random(rng, (1, 3, 4))), (at, np.array([6], np.int32))])
        kept = read(session, cache)
        with pytest.raises(TaskError, match=text + "o 6"):
            turn(session, [(at, np.array([bad], np.int32))])
        assert np.array_equal(read(session, cache), kept)


def test_a_cache_that_is_full_ends_the_run_in_that_turn(device: str) -> None:
    with ark.Runtime(device=device, workers=2) as runtime:
        cache, at = ark.state((2, 6), "int32"), ark.state(2, "int32", init=[0, 1])
        ark.scatter(cache, ark.ones((2, 2), "int32"), at, axis=1)
        ark.assign(at, at + 2)
        runtime.launch()
        runtime.run(2)
        with pytest.raises(TaskError, match="iteration 0: position 5 is outside 0 to 4"):
            runtime.run(1)


def test_a_tensor_that_is_no_state_is_copied(rng: Rng) -> None:
    x, source = ark.tensor((4, 6), "bf16"), ark.tensor((4, 2), "bf16")
    result = x.scatter(source, 3, axis=1)
    assert result.name != x.name
    data, part = random(rng, (4, 6), "bf16"), random(rng, (4, 2), "bf16")
    want = data.copy()
    want[:, 3:5] = part
    assert np.array_equal(compute(result, (x, data), (source, part)), want)


def test_a_state_can_be_written_from_itself_and_elsewhere(rng: Rng) -> None:
    """Source and target overlap; and with an output given, the state stays as it is."""
    model = ark.Model()
    first = random(rng, (8, 3))
    one, two = model.state((8, 3), init=first), model.state((8, 3), init=first)
    other = model.state((8, 3))
    model.scatter(one, one[1:6], model.constant(2), axis=0)
    assert model.scatter(two, two[:2], model.constant(5), axis=0, output=other) is other
    with running(model, ("cpu", 3)) as session:
        turn(session, [])
        want = first.copy()
        want[2:7] = first[1:6]
        assert np.array_equal(read(session, one), want)
        assert np.array_equal(read(session, two), first)
        want = first.copy()
        want[5:7] = first[:2]
        assert np.array_equal(read(session, other), want)


def test_scatter_refuses_what_does_not_fit() -> None:
    x, part = ark.tensor((3, 6)), ark.tensor((3, 2))
    at, rows = ark.tensor(1, "int32"), ark.tensor(3, "int32")
    for arguments, error, text in (
        ((x, part[:2], at, 1), ValueError, r"scatter: source is \(2, 2\), input is \(3, 6\); all"),
        ((x, part[0], at, 1), ValueError, r"scatter: source is \(2,\), input is \(3, 6\)"),
        ((part, x, at, 1), ValueError, "scatter: source is .* equal, and that one no larger"),
        ((x, part.cast("fp16"), at, 1), TypeError, "scatter: dtypes differ, fp32 and fp16"),
        ((x, part, at.cast("fp32"), 1), TypeError, "scatter: the position is fp32; it must be i"),
        ((x, part, 1.5, 1), TypeError, "scatter: 1.5 does not fit a tensor of int32"),
        ((x, part, rows[:2], 1), ValueError, r"scatter: the position is \(2,\); it must be \(\)"),
        ((x, x[:1], rows, 0), ValueError, r"scatter: the position is \(3,\); it must be \(\) or"),
        ((x, part, at, 2), ValueError, "scatter: axis 2 is out of range"),
    ):
        with pytest.raises(error, match=f"^{text}"):
            ark.scatter(*arguments)
    weight = ark.parameter((3, 6))
    with pytest.raises(ValueError, match=r"scatter: output 'parameter' is of kind weight"):
        ark.scatter(weight, part, at, 1, output=weight)


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_do_what_their_steps_say(seed: int) -> None:
    program = Program(np.random.default_rng([seed, 31]))
    for _ in range(14):
        getattr(program, str(program.rng.choice(["join", "write", "assign"])))()
    for machine in MACHINES:
        for memory in program.memory:
            memory[...] = 0
        with running(program.model, machine) as session:
            for iterations in (1, 2):
                program.turn(session, iterations)
                for tensor, base, look in program.pool:
                    want = look(program.memory[base])
                    assert np.array_equal(read(session, tensor), want), (machine, tensor)
