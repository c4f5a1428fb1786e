"""Fault rows 63 and 64: names that attack, and sizes that are extreme."""

import numpy as np
import pytest

import ark_dist as ark

NASTY = [
    '"; system("touch owned"); //',
    "line\nbreak */ #include <x>",
    "../../etc/passwd",
    "$(touch owned) `touch owned`",
    "\u540d\u524d \U0001f600 \u202e",
    "\\",
    "\0",
    "\ud800",
    "?" + "?/",
    "x" * 512,
]


@pytest.mark.parametrize("name", NASTY, ids=ascii)
def test_a_name_is_only_ever_a_name(
    name: str,
    device: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path_factory.mktemp("names")
    monkeypatch.chdir(folder)
    model = ark.Model(name)
    x = model.tensor(2, name=name)
    n = model.scalar(name + "n" if len(name) < 512 else "n", ark.FP32)
    with model.method(name):
        y = model.add(x, n, name=name)
    with ark.Executor(model=model, name=name, device=device, workers=1) as exe:
        text = str(exe.plan)
        assert all(line.isprintable() for line in text.splitlines())
        exe.compile()
        x.from_numpy(np.array([1, 2]))
        exe.launch()
        exe.run(1, method=name, scalars={n.name: 1})
        exe.wait()
        assert y.to_numpy().tolist() == [2, 3]
    assert list(folder.iterdir()) == []
    assert name in repr(x) or ascii(name)[1:-1] in ascii(repr(x)).replace("\\\\", "\\")


@pytest.mark.parametrize("name", ["x" * 513, "x" * 10_000])
def test_a_name_that_is_too_long_is_refused(name: str) -> None:
    text = f"name 'x+'... has {len(name)} characters; 512 work"
    model = ark.Model()
    for call in (
        lambda: ark.Model(name),
        lambda: model.tensor(1, name=name),
        lambda: model.scalar(name),
        lambda: ark.Executor(model=model, name=name, device="numpy"),
        lambda: model.method(name).__enter__(),
    ):
        with pytest.raises(ValueError, match=text):
            call()


@pytest.mark.parametrize("name", ["", 3, None, b"x"])
def test_a_name_must_be_a_string_with_characters(name: str) -> None:
    with pytest.raises(TypeError, match=r"name is .*; it must be a non-empty string"):
        ark.Model(name)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 3), (1,), (), (1, 1, 1, 1, 1, 1, 1, 1)])
def test_empty_and_tiny_tensors_work(shape: tuple[int, ...], device: str) -> None:
    model = ark.Model()
    x = model.tensor(shape)
    y, kept = x * 2 + 1, model.state(shape, init=3)
    model.assign(kept, kept + x)
    with ark.Executor(model=model, device=device, workers=1) as exe:
        exe.compile()
        x.from_numpy(np.full(shape, 2))
        exe.launch()
        exe.run(2)
        exe.wait()
        for tensor, value in ((y, 5), (kept, 7), (x, 2)):
            assert tensor.to_numpy().shape == shape
            np.testing.assert_array_equal(tensor.to_numpy(), np.full(shape, value))


def test_an_empty_weight_needs_no_values() -> None:
    model = ark.Model()
    y = model.matmul(model.constant([[1.0]]), model.parameter((1, 0)))
    with ark.Executor(model=model, device="numpy") as exe:
        exe.compile()
        exe.launch()
        exe.run(1)
        exe.wait()
        assert y.to_numpy().shape == (1, 0)


@pytest.mark.parametrize("device", ["null", "numpy"])
def test_more_elements_than_31_bits_can_be_planned(device: str) -> None:
    model = ark.Model()
    x = model.tensor(2**31 + 1, ark.INT8)
    model.add(x.relu(), 1)
    exe = ark.Executor(model=model, device=device)
    assert exe.plan.arena_bytes[2] >= 2 * (2**31 + 1)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2**48 + 1,), r"has more than 2\*\*48 elements; cut the tensor"),
        ((2**63, 2**63), r"has more than 2\*\*48 elements"),
        ((-1,), "sizes must be 0 or more"),
        ((1,) * 9, "has 9 dimensions; at most 8 work"),
    ],
)
def test_a_size_beyond_the_limits_is_refused(shape: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ark.Model().tensor(shape)


def test_thousands_of_operators_can_be_planned_and_run() -> None:
    model = ark.Model()
    x = model.state(1, ark.INT32)
    y = x
    for _ in range(2000):
        y = y + 1
    with ark.Executor(model=model, device="numpy") as exe:
        exe.compile()
        exe.launch()
        exe.run(1)
        exe.wait()
        assert y.to_numpy().tolist() == [2000]
