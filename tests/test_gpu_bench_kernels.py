"""The kernels that measure a GPU compile for all of them, and compute right under emulation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from ark_dist.bench import gpu_kernels
from ark_dist.bench.gpu_hops import Counts, Hops
from ark_dist.bench.gpu_kernels import (
    CONFIG,
    HEAD_BYTES,
    HOPS,
    READ,
    STREAM,
    BenchGpu,
    Family,
    Ring,
    kernel_text,
)
from ark_dist.bench.gpu_memory import WAYS, GpuMemory, Sizes, Way, other_rings, product_ring
from ark_dist.core.errors import CompilerNotFoundError
from ark_dist.core.settings import read_settings
from ark_dist.core.source import Source
from ark_dist.kernels.text import SHARED_BYTES, shared_layout
from ark_dist.launch import nvrtc, sass
from ark_dist.launch.devices.cupy_gpu import GpuFaultError
from tests.fake_cupy import install
from tests.fake_gpu import FakeGpu

ARCHS = ("sm_80", "sm_90a", "sm_100a")
CAPABILITIES = {"sm_80": (8, 0), "sm_90a": (9, 0)}
COUNTS = Counts(turns=7, rounds=1, calls=3)
# Two ways: parts and turns, plain and once, and more CTAs than multiprocessors.
TWO_WAYS = (Way(4, 2, False, False), Way(8, 1, True, True))
# The data ends within a block, and within a round.
SIZES = Sizes(
    read_bytes=4 * 2 * 512 * 8 * 16 * 3 + 512 * 7,
    block_bytes=1 << 16,
    stream_bytes=4 * 72 * 256,
    stream_turns=3,
    line_elems=128,
    ways=TWO_WAYS,
    rounds=1,
)


@contextmanager
def bench_gpu(race: bool = False, arch: str = "sm_90a") -> Iterator[BenchGpu]:
    """A fake GPU, two CTAs of which share a multiprocessor."""
    with pytest.MonkeyPatch.context() as patch:
        gpu = FakeGpu(0, capability=CAPABILITIES[arch], ctas_per_sm=2)
        fake = install(patch, gpu, race=race)
        yield BenchGpu(0)
        fake.check()


def report(family: Family, arch: str, ring: Ring | None = None) -> tuple[nvrtc.Report, Any]:
    try:
        nvrtc.find_nvrtc()
        sass.find_nvdisasm()
    except CompilerNotFoundError as error:
        pytest.skip(str(error))
    source = Source(family.header, "cuda", kernel_text(family.header, ring))
    binary, found = nvrtc.compile_cuda(source, arch=arch, settings=read_settings())
    return found, sass.functions(binary.path)


@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_compile_without_a_stack_and_read_16_bytes_at_once(arch: str) -> None:
    found, functions = report(READ, arch)
    names = {way.kernel(kind) for way in WAYS for kind in ("read", "copy")}
    assert {kernel.name for kernel in found.kernels} == names
    for name, function in functions.items():
        unroll = int(name.rpartition("_")[2])
        assert function.count("LDG.E.128") == unroll
        assert function.count("STG.E.128") == (unroll if "copy" in name else 0)
    others, _ = report(HOPS, arch)
    assert {kernel.name for kernel in others.kernels} == {
        *("ark_ping", "ark_ping_restless", "ark_fan", "ark_echo", "ark_empty")
    }
    assert not any(kernel.stack_bytes for kernel in (*found.kernels, *others.kernels))


@pytest.mark.parametrize("arch", ARCHS)
def test_each_ring_fits_and_compiles(arch: str) -> None:
    own = shared_layout(arch, 0, has_stream=True)
    assert product_ring(arch) == Ring(own.slots, own.slot_bytes)
    for ring in (product_ring(arch), *other_rings(arch)):
        assert ring.bytes <= SHARED_BYTES[arch]
    found, _ = report(STREAM, arch, product_ring(arch))
    assert found.kernel("ark_stream_only").stack_bytes == 0
    names = [ring.name for ring in other_rings("sm_90a")]
    assert {"4 KiB x 32", "8 KiB x 16", "16 KiB x 8"} <= {*names}


def test_headers_and_python_agree_on_sizes() -> None:
    stream, read = (kernel_text(f.header, Ring(8, 1024)) for f in (STREAM, READ))
    assert f"ARK_STREAM_HEAD_BYTES = {HEAD_BYTES};" in stream
    assert f"ARK_READ_THREADS = {READ.threads};" in read
    assert READ.sums * 32 == READ.threads and (STREAM.sums + 1) * 32 == STREAM.threads
    assert f"ark_bench {CONFIG};" in read


@pytest.mark.parametrize("race", [False, True])
def test_reads_and_copies_are_right(race: bool) -> None:
    with bench_gpu(race) as bench:
        memory = GpuMemory(bench, SIZES)
        assert memory.read_per_s > 0 and memory.copied_per_s > 0


@pytest.mark.parametrize("arch", CAPABILITIES)
@pytest.mark.parametrize("race", [False, True])
def test_all_of_the_stream_arrives_through_rings_of_any_shape(race: bool, arch: str) -> None:
    with bench_gpu(race, arch) as bench:
        memory = GpuMemory(bench, SIZES)
        for ring in (Ring(8, 1024), Ring(16, 256), Ring(8, 640)):
            assert memory.streamed_per_s(ring) > 0


@pytest.mark.parametrize("race", [False, True])
def test_signals_arrive_as_often_as_they_are_sent(race: bool) -> None:
    with bench_gpu(race) as bench:
        hops = Hops(bench, COUNTS)
        assert hops.ping_s() > 0 and hops.ping_s(pauses=False) > 0 and hops.fan_s() > 0
        for seconds in (hops.echo_s(), hops.launch_s()):
            assert len(seconds) == COUNTS.calls and min(seconds) > 0


# The text that goes, the text that comes.
MUTATIONS = [
    ("if (!ark_acquire_slot(ring, slot + i)) break;", ""),
    ("step];\n      ark_release_slot(ring, slot + i);", "step];"),
    ("slot += stream.count)", "slot += 0)"),
    ("round < config.rounds; ++round, at", "round + 1 < config.rounds; ++round, at"),
    ("v[i] = load(source + at + i * ARK", "v[i] = load(source + at + 0 * ARK"),
    ("(round + 1) * gpu_grid()", "(round + 2) * gpu_grid()"),
]


@pytest.mark.parametrize(("old", "new"), MUTATIONS, ids=range(len(MUTATIONS)))
def test_a_planted_mistake_is_caught(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [kernel_text(f.header, Ring(8, 1024)) for f in (READ, STREAM, HOPS)]
    assert any(old in text for text in texts)
    install(monkeypatch, FakeGpu(0), race=True)
    monkeypatch.setattr(
        gpu_kernels, "kernel_text", lambda *what: kernel_text(*what).replace(old, new)
    )
    bench = BenchGpu(0)
    memory, hops = GpuMemory(bench, SIZES), Hops(bench, COUNTS)
    with pytest.raises((ArithmeticError, GpuFaultError)):
        memory.streamed_per_s(Ring(8, 1024))
        _ = memory.read_per_s
        hops.fan_s()


class Forged(BenchGpu):
    """A GPU whose kernels leave one sum that is wrong."""

    def run(self, kernel: Any, ctas: int, **fields: int) -> Any:  # noqa: ANN401
        outcome = super().run(kernel, ctas, **fields)
        outcome.sums[-1] += 1
        return outcome


def test_what_did_not_arrive_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeGpu(0))
    bench = Forged(0)
    memory, hops = GpuMemory(bench, SIZES), Hops(bench, COUNTS)
    with pytest.raises(ArithmeticError, match=r"read: the words that came add up to \d+, wanted"):
        _ = memory.read_per_s
    with pytest.raises(ArithmeticError, match="stream: the words that came add up to"):
        memory.streamed_per_s(Ring(8, 1024))
    with pytest.raises(ArithmeticError, match=r"ark_ping: CTAs were through \[7 8\] rounds"):
        hops.ping_s()
    monkeypatch.setattr(memory, "_block", np.zeros_like(memory._block))
    with pytest.raises(ArithmeticError, match="the copy differs from its source"):
        _ = memory.copied_per_s
    fake.check()
