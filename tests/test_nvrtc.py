"""CUDA source becomes a cubin with figures, or an error that says why not."""

import ctypes
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ark_dist.core.errors import CacheError, CompileError, CompilerNotFoundError
from ark_dist.core.settings import Settings, read_settings
from ark_dist.core.source import Source
from ark_dist.launch import cache, nvrtc

ARCHS = ("sm_80", "sm_90a", "sm_100a")
TEXT = """
#include "ark_gpu.h"
struct config_t { float* y; const float* x; };
GPU_CONSTANT config_t config;
GPU_KERNEL(twice, 64) {
  gpu_global(config.y)[gpu_thread()] = 2 * gpu_global(config.x)[gpu_thread()];
}
"""
# Registers are too few for the array, whose index is not known: it gets local memory.
STACK = """
#include "ark_gpu.h"
GPU_CONSTANT float* y;
GPU_KERNEL(slow, 64) {
  float values[64];
  for (int i = 0; i < 64; ++i) values[(i * i) % 64] = gpu_global(y)[i];
  gpu_global(y)[gpu_thread()] = values[uint32_t(gpu_global(y)[64]) % 64];
}
"""
ELF_CUDA = 190  # e_machine of elf.h

try:
    nvrtc.find_nvrtc()
except CompilerNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    yield read_settings({"ARK_DIST_CACHE_DIR": str(tmp_path / "cache")})


def source(text: str = TEXT, name: str = "toy") -> Source:
    return Source(name, "cuda", text)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_program_becomes_a_cubin_and_a_report(settings: Settings, arch: str) -> None:
    binary, report = nvrtc.compile_cuda(source(), arch=arch, settings=settings)
    data = binary.path.read_bytes()
    assert data[:4] == b"\x7fELF" and int.from_bytes(data[18:20], "little") == ELF_CUDA
    assert binary.source_path.read_text() == TEXT
    (kernel,) = report.kernels
    assert kernel == report.kernel("twice")
    assert 0 < kernel.registers <= 32
    assert (kernel.stack_bytes, kernel.spill_store_bytes, kernel.spill_load_bytes) == (0, 0, 0)
    assert kernel.shared_bytes == 0


def test_stack_shows_in_the_report(settings: Settings) -> None:
    _, report = nvrtc.compile_cuda(source(STACK), arch="sm_90a", settings=settings)
    assert report.kernel("slow").stack_bytes >= 64 * 4


def test_a_report_has_every_kernel_and_no_other(settings: Settings) -> None:
    text = TEXT + STACK.replace('#include "ark_gpu.h"', "")
    _, report = nvrtc.compile_cuda(source(text), arch="sm_80", settings=settings)
    assert {kernel.name for kernel in report.kernels} == {"twice", "slow"}
    with pytest.raises(KeyError, match="'thrice' is no kernel of"):
        report.kernel("thrice")


def test_a_second_compilation_is_a_hit_with_the_same_report(settings: Settings) -> None:
    seen: list[Path] = []
    first, report = nvrtc.compile_cuda(
        source(), arch="sm_80", settings=settings, on_compile=seen.append
    )
    second, again = nvrtc.compile_cuda(
        source(), arch="sm_80", settings=settings, on_compile=seen.append
    )
    assert (first.is_cached, second.is_cached) == (False, True)
    assert report == again
    assert seen == [first.source_path] * 2
    (entry,) = cache.open_cache(settings.cache_dir).ls()
    assert (entry.language, entry.isa) == ("cuda", "sm_80")
    assert cache.open_cache(settings.cache_dir).verify() == ()


def test_everything_that_goes_in_decides_the_key(settings: Settings) -> None:
    headers = nvrtc.device_headers()
    keys = [
        nvrtc.compile_cuda(source(text), arch=arch, settings=settings, headers=changed)[0].key
        for text, arch, changed in [
            (TEXT, "sm_80", None),
            (TEXT, "sm_90a", None),
            (TEXT + "\n", "sm_80", None),
            (TEXT, "sm_80", {**headers, "stdint.h": headers["stdint.h"] + "\n"}),
        ]
    ]
    assert len(set(keys)) == len(keys)


def test_a_lost_log_is_a_cache_error(settings: Settings) -> None:
    binary, _ = nvrtc.compile_cuda(source(), arch="sm_80", settings=settings)
    binary.path.with_name(nvrtc.LOG_NAME).unlink()
    with pytest.raises(CacheError, match="has lost its log"):
        nvrtc.compile_cuda(source(), arch="sm_80", settings=settings)


def test_a_mistake_is_shown_with_its_line(settings: Settings) -> None:
    with pytest.raises(CompileError) as caught:
        nvrtc.compile_cuda(source(TEXT + "int x = y;", "bad"), arch="sm_80", settings=settings)
    text = str(caught.value)
    assert "compiling 'bad' for sm_80 failed" in text
    assert 'identifier "y" is undefined' in text
    path = Path(text.split("the source is ")[1].splitlines()[0])
    assert "int x = y;" in path.read_text()


def test_a_missing_header_is_named(settings: Settings) -> None:
    with pytest.raises(CompileError, match=r"ark_gpu\.h"):
        nvrtc.compile_cuda(source(), arch="sm_80", settings=settings, headers={})


@pytest.mark.parametrize("arch", ["90a", "sm_", "compute_80", "sm_90a -G"])
def test_an_arch_that_is_none_is_refused(settings: Settings, arch: str) -> None:
    with pytest.raises(ValueError, match="it must be like 'sm_80' or 'sm_90a'"):
        nvrtc.compile_cuda(source(), arch=arch, settings=settings)


def test_an_arch_that_nvrtc_does_not_know_is_a_compile_error(settings: Settings) -> None:
    with pytest.raises(CompileError, match="sm_11"):
        nvrtc.compile_cuda(source(), arch="sm_11", settings=settings)


def test_only_cuda_is_compiled(settings: Settings) -> None:
    with pytest.raises(ValueError, match=r"takes 'cuda'"):
        nvrtc.compile_cuda(Source("toy", "c++", TEXT), arch="sm_80", settings=settings)


def test_a_compilation_ends_at_its_limit(settings: Settings) -> None:
    if not hasattr(nvrtc.find_nvrtc().library, "nvrtcSetFlowCallback"):
        pytest.skip("this NVRTC can't be interrupted: it is older than 12.9")
    hasty = dataclasses.replace(settings, compile_timeout_s=1e-9)
    with pytest.raises(CompileError, match=r"longer than 1e-09 s \(ARK_DIST_COMPILE_TIMEOUT_S\)"):
        nvrtc.compile_cuda(source(), arch="sm_80", settings=hasty)


def test_threads_may_compile_at_once(settings: Settings) -> None:
    found: list[str] = []

    def work(number: int) -> None:
        text = TEXT.replace("2 *", f"{number} *")
        binary, _ = nvrtc.compile_cuda(source(text), arch="sm_90a", settings=settings)
        found.append(binary.key)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 3


def test_without_nvrtc_the_error_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "LIBRARY_PATTERNS", ())
    monkeypatch.setattr(nvrtc, "SYSTEM_LIBRARIES", ("libnvrtc-missing.so",))
    monkeypatch.setattr(nvrtc, "_toolkit_files", lambda: [])
    with pytest.raises(CompilerNotFoundError, match=r"ark_dist\[cuda12\]"):
        nvrtc.find_nvrtc.__wrapped__()


def test_what_nvrtc_opens_by_name_is_opened_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    names = ("libnvrtc-builtins.alt.so.13.0", "libnvrtc-builtins.so.13.0", "libnvrtc.so.13")
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: opened.append(Path(name).name))
    monkeypatch.setattr(nvrtc, "wheel_files", lambda patterns: [tmp_path / "libnvrtc.so.13"])
    monkeypatch.setattr(nvrtc, "Nvrtc", lambda library, path: path)
    found: object = nvrtc.find_nvrtc.__wrapped__()
    assert found == str(tmp_path / "libnvrtc.so.13")
    assert opened == ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"]


def test_nvrtc_of_the_toolkit_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def refuse(name: str) -> None:
        tried.append(name)
        raise OSError(name)

    for toolkit in ("cuda-13.0", "cuda"):
        for name in ("bin/nvcc", "lib64/libnvrtc.so.13"):
            path = tmp_path / toolkit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "cuda-13.0" / "bin"))
    monkeypatch.setattr(nvrtc, "TOOLKIT", tmp_path / "cuda")
    monkeypatch.setattr(nvrtc, "wheel_files", lambda patterns: [])
    monkeypatch.setattr(ctypes, "CDLL", refuse)
    with pytest.raises(CompilerNotFoundError):
        nvrtc.find_nvrtc.__wrapped__()
    found = [
        str(tmp_path / toolkit / "lib64" / "libnvrtc.so.13") for toolkit in ("cuda-13.0", "cuda")
    ]
    assert tried == [*nvrtc.SYSTEM_LIBRARIES, *found]


def test_figures_are_read_from_the_log() -> None:
    log = """
ptxas info    : 28 bytes gmem, 32 bytes cmem[3], 8 bytes cmem[4]
ptxas info    : Compiling entry function 'a' for 'sm_80'
ptxas info    : Function properties for a
ptxas         .     16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 3 barriers, 16 bytes cumulative stack size, 8 bytes smem, \
352 bytes cmem[0]
ptxas info    : Compiling entry function 'b' for 'sm_80'
ptxas info    : Function properties for b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 9 registers, used 0 barriers, 360 bytes cmem[0]
"""
    a, b = nvrtc.parse_report(log).kernels
    assert a == nvrtc.KernelReport("a", 255, 16, 12, 20, 8, 384, 3)
    assert b == nvrtc.KernelReport("b", 9, 0, 0, 0, 0, 392, 0)
