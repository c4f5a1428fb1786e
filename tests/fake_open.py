"""Open sessions on a GPU of a machine that is faked."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ark_dist.core.plan import Plan
from ark_dist.core.settings import read_settings
from ark_dist.kernels.emit import emit_cuda
from ark_dist.launch.devices.base import Emit
from ark_dist.launch.session import Session
from tests.cuda_cases import LIMIT_S, opened
from tests.fake_cupy import Fake


class Opener:
    """Opens sessions on a GPU of a fake machine."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.settings = read_settings()

    @contextmanager
    def __call__(
        self,
        plan: Plan,
        *,
        gpu_id: int = 0,
        sms: range | None = None,
        timeout_s: float = LIMIT_S,
        watchdog: bool = False,
        emit: Emit = emit_cuda,
    ) -> Iterator[Session]:
        gpu = self.fake.gpus[gpu_id]
        gpu.has_watchdog = watchdog
        part: dict[str, Any] = {"gpu_id": gpu_id, "sms": sms}
        options: dict[str, Any] = {"settings": self.settings, "emit": emit, **part}
        with opened(plan, timeout_s=timeout_s, **options) as session:
            weights = session.memory.address("weights")
            gpu.read_only.add(weights)
            yield session
        gpu.read_only.discard(weights)  # memory of another session may come to lie there
