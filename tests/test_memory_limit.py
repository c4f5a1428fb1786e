"""A plan that needs more memory than there is never gets to allocate any."""

import pytest

import ark_dist as ark
from ark_dist.core.errors import MemoryLimitError
from ark_dist.launch.memory_limit import size_text


def large_model() -> ark.Model:
    model = ark.Model("large")
    x = model.tensor((64, 1024), name="x")
    model.matmul(x, model.parameter((1024, 1024), name="wide"), name="y")
    return model


@pytest.mark.parametrize("device", ["numpy", "cpu", "emulated"])
def test_a_plan_above_the_limit_is_refused_with_its_largest_buffers(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARK_DIST_MEMORY", str(2**20))
    with pytest.raises(MemoryLimitError) as error:
        ark.Executor(model=large_model(), device=device)
    first, *lines = str(error.value).splitlines()
    assert "rank 0: program 'large' needs 4.5 MiB" in first and "may have 1.0 MiB" in first
    assert "weights 4.0 MiB" in first and "use more ranks" in first
    assert "4.0 MiB" in lines[0] and "weight" in lines[0] and "'wide' fp32[1024, 1024]" in lines[0]


def test_a_plan_below_the_limit_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARK_DIST_MEMORY", str(2**23))
    ark.Executor(model=large_model(), device="numpy").close()
    monkeypatch.setenv("ARK_DIST_MEMORY", "1")
    ark.Executor(model=large_model(), device="null").close()


def test_a_model_larger_than_the_machine_is_refused() -> None:
    model = ark.Model()
    model.matmul(model.tensor((1, 2**20)), model.parameter((2**20, 2**26)))
    with pytest.raises(MemoryLimitError, match=r"needs 256\.0 TiB"):
        ark.Executor(model=model, device="numpy")


@pytest.mark.parametrize("value", ["0", "-1", "1G", "many"])
def test_a_limit_that_is_no_number_of_bytes_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARK_DIST_MEMORY", value)
    with pytest.raises(ValueError, match=r"ARK_DIST_MEMORY is .* whole number of bytes"):
        ark.Executor(model=large_model(), device="numpy")


def test_sizes_have_the_unit_that_fits() -> None:
    sizes = (0, 1023, 1024, 3 * 2**29, 2**60)
    assert [size_text(n) for n in sizes] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "1.5 GiB",
        "1048576.0 TiB",
    ]
