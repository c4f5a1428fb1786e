"""Fixtures that all tests share: a fresh current model, and the devices that compute."""

from collections.abc import Iterator

import pytest

import ark_dist as ark
from ark_dist.launch.open import DEVICES
from tests.fake_cupy import Fake, install
from tests.fake_gpu import FakeGpu


@pytest.fixture(autouse=True)
def fresh_model() -> Iterator[None]:
    """Start and leave each test without a current model."""
    ark.init(reset=True)
    yield
    ark.init(reset=True)


@pytest.fixture(params=[name for name in ("numpy", "cpu") if name in DEVICES])
def device(request: pytest.FixtureRequest) -> str:
    """Each device that computes on this machine."""
    name = request.param
    assert isinstance(name, str)
    return name


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """A machine with two GPUs, which are emulated."""
    machine = install(monkeypatch, FakeGpu(0), FakeGpu(1))
    yield machine
    machine.check()
