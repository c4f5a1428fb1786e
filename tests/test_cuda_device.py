"""The CUDA device behind a session, on a cupy that is faked: kernels are emulated by threads."""

import gc
import os
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.core.errors import (
    ArkError,
    DeviceBusy,
    DeviceNotFoundError,
    MemoryLimitError,
    StallError,
)
from ark_dist.core.plan import Plan
from ark_dist.core.settings import read_settings
from ark_dist.launch.devices.cuda import CudaDevice
from ark_dist.launch.devices.cupy_gpu import Gpu, GpuPart, gpu_properties
from ark_dist.launch.machine import Command
from ark_dist.launch.open import find_device
from tests.cuda_cases import CASES, interrupted_after, running_endlessly
from tests.cuda_programs import (
    check_copies,
    early_end_of_generation,
    greedy_tokens,
    operators,
)
from tests.emulated import gpu_plan
from tests.fake_cupy import Fake, install
from tests.fake_open import Opener
from tests.lifecycle_models import NEVER, check_loop, looping, plan_for, set_stop
from tests.plan_models import block
from tests.test_cpu_device import pair_of_methods
from tests.test_emulated_device import never_raised
from tests.test_emulated_transformer import CONFIGS
from tests.test_gpu_trace import check_trace


@pytest.mark.parametrize("name", CASES)
def test_on_a_fake_gpu(name: str, fake: Fake) -> None:
    CASES[name](Opener(fake), gpu_plan)


def test_a_gpu_of_the_generation_before_runs_plans_for_it(fake: Fake) -> None:
    fake.gpus[0].capability = (8, 0)
    case = CASES["early ends close the queue and wait opens it again"]
    case(Opener(fake), partial(gpu_plan, arch="sm_80"))


def test_operators_on_a_fake_gpu(fake: Fake) -> None:
    operators(Opener(fake), gpu_plan, "bf16", seed=1, most=1)


def test_the_transformer_on_a_fake_gpu(fake: Fake) -> None:
    greedy_tokens(Opener(fake), gpu_plan, CONFIGS["streamed bf16"])
    early_end_of_generation(Opener(fake), gpu_plan)


def loop_plan(workers: int = 3, arch: str = "sm_90a") -> Plan:
    return gpu_plan(looping().graph, workers=workers, arch=arch)


# Machines on which a program can't be made.


def device_of(plan: Plan, gpu_id: int = 0) -> CudaDevice:
    return CudaDevice(plan, read_settings(), GpuPart(gpu_id))


def test_without_cupy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    text = r'needs cupy .*pip install "ark_dist\[cuda12\]".*use device="cpu"'
    with pytest.raises(DeviceNotFoundError, match=text):
        device_of(loop_plan())


def test_without_a_gpu_the_error_names_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(DeviceNotFoundError, match=r"cudaErrorNoDevice.*use device='cpu'"):
        device_of(loop_plan())


@pytest.mark.parametrize("gpu_id", [-1, 2])
def test_a_gpu_that_is_not_there_is_named(fake: Fake, gpu_id: int) -> None:
    with pytest.raises(DeviceNotFoundError, match=rf"GPU {gpu_id} is not one of the 2 there are"):
        device_of(loop_plan(), gpu_id)


@pytest.mark.parametrize("capability", [(7, 5), (8, 6), (9, 1), (12, 0)])
def test_a_gpu_whose_cubins_we_have_not_is_named(fake: Fake, capability: tuple[int, int]) -> None:
    fake.gpus[0].capability = capability
    text = rf"compute capability {capability[0]}\.{capability[1]}; .*9\.0.* work; use another GPU"
    with pytest.raises(DeviceNotFoundError, match=text):
        device_of(loop_plan())


@pytest.mark.parametrize(("workers", "arch"), [(3, "sm_80"), (5, "sm_90a")])
def test_a_plan_for_another_gpu_is_refused(fake: Fake, workers: int, arch: str) -> None:
    text = rf"planned for {workers} workers of {arch}; GPU 0 \(Fake GPU\) has 4 of sm_90a; plan"
    with pytest.raises(ValueError, match=text):
        device_of(loop_plan(workers, arch))


def test_a_plan_for_a_cpu_is_refused(fake: Fake) -> None:
    plan = plan_for(looping().graph, workers=1)
    with pytest.raises(ValueError, match="was planned for 'cpu', not for 'cuda'; plan the graph"):
        device_of(plan)


def test_too_few_blocks_at_once_is_an_error_and_not_a_smaller_grid(fake: Fake) -> None:
    fake.gpus[0].ctas_per_sm = 0
    with pytest.raises(ArkError, match=r"3 blocks .* GPU 0 takes 0 at once; use fewer workers"):
        device_of(loop_plan()).compile(lambda path: None)


def test_a_gpu_without_enough_memory_is_a_memory_limit_error(fake: Fake) -> None:
    fake.gpus[0].memory_bytes = 100
    text = r"GPU 0: allocating \d+ bytes failed: Out of memory .*; use a smaller model"
    with pytest.raises(MemoryLimitError, match=text), Opener(fake)(loop_plan()):
        pass


# Several GPUs.


def test_a_process_that_uses_one_gpu_opens_no_other(fake: Fake) -> None:
    loop = looping()
    with Opener(fake)(gpu_plan(loop.graph), gpu_id=1) as session:
        running_endlessly(session, loop)
        threading.Thread(target=session.close).run()
    thread_cases = CASES["calls come from any thread"]
    thread_cases(partial(Opener(fake), gpu_id=1), gpu_plan)
    assert [gpu.has_context for gpu in fake.gpus] == [False, True]


def test_the_device_that_the_program_has_made_current_stays_current(fake: Fake) -> None:
    fake.use(1)
    loop = looping()
    with Opener(fake)(gpu_plan(loop.graph), gpu_id=0) as session:
        assert fake.current().id == 1
        session.launch()
        set_stop(session, loop, NEVER)
        session.run(3, "forward", {})
        assert session.wait() == 3
        check_loop(session, loop, 3, "on GPU 0")
        session.stop()
        assert fake.current().id == 1


def test_two_gpus_run_two_programs_at_once(fake: Fake) -> None:
    loop, opener = looping(), Opener(fake)
    plan = gpu_plan(loop.graph, workers=4)
    with opener(plan, gpu_id=0) as first, opener(plan, gpu_id=1) as second:
        for session in (first, second):
            session.launch()
            set_stop(session, loop, NEVER)
        first.run(6, "forward", {})
        second.run(4, "forward", {})
        assert (first.wait(), second.wait()) == (6, 4)
        check_loop(first, loop, 6, "GPU 0")
        check_loop(second, loop, 4, "GPU 1")


# What the host has to find out by itself.


@pytest.mark.parametrize("sms", [(None, None), (range(3), None), (range(3), range(2, 4))])
def test_a_busy_gpu_is_refused(fake: Fake, sms: tuple[range | None, range | None]) -> None:
    opener, plan = Opener(fake), loop_plan(workers=2)
    with opener(plan, sms=sms[0]) as first, opener(plan, sms=sms[1]) as second:
        first.launch()
        held = 3 if sms[0] is None else 2
        text = (
            r"launch\(\) of program 'loop' wants multiprocessors \d to 3 of GPU 0, and program "
            rf"'loop' holds 0 to {held}; stop\(\) that first, or .*sms="
        )
        with pytest.raises(DeviceBusy, match=text):
            second.launch()
        first.stop()
        second.launch()


def test_multiprocessors_that_a_gpu_does_not_have_are_refused(fake: Fake) -> None:
    text = r"sms is range\(2, 5\); GPU 0 has 4 multiprocessors, so it must lie in range\(0, 4\)"
    with pytest.raises(ValueError, match=text):
        CudaDevice(loop_plan(2), read_settings(), GpuPart(0, range(2, 5)))
    with pytest.raises(ValueError, match=r"planned for 3 workers .* has 2 of sm_90a"):
        CudaDevice(loop_plan(3), read_settings(), GpuPart(0, range(2)))


def test_a_kernel_that_another_process_keeps_from_starting_is_a_stall(fake: Fake) -> None:
    fake.gpus[0].is_busy = True
    loop = looping()
    with Opener(fake)(gpu_plan(loop.graph), timeout_s=0.3) as session:
        text = r"did not start within 0.3 s; .* GPU 0 .*use fewer workers"
        with pytest.raises(StallError, match=text):
            session.launch()
        assert session.state == "compiled"
        fake.gpus[0].is_busy = False
        session.launch()
        set_stop(session, loop, NEVER)
        session.run(2, "forward", {})
        assert session.wait() == 2


def test_ctrl_c_while_a_kernel_cannot_start_leaves_none(fake: Fake) -> None:
    gpu = fake.gpus[0]
    gpu.is_busy = True
    with Opener(fake)(loop_plan()) as session:
        with interrupted_after(0.2), pytest.raises(KeyboardInterrupt):
            session.launch()
        assert session.state == "compiled"
        gpu.is_busy = False
        while gpu.residents:
            time.sleep(0.001)
        session.launch()


def test_a_fault_of_the_kernel_is_an_error_and_close_works(fake: Fake) -> None:
    plan = never_raised(gpu_plan(block()))
    with Opener(fake)(plan) as session:
        session.launch()
        session.run(1, "forward", {})
        # Without a watchdog the emulation ends the kernel, as a GPU does at a bad address.
        with pytest.raises(ArkError, match=r"GPU 0: .*LaunchFailure.*start a new one"):
            session.wait()
        assert session.state == "failed"
        with pytest.raises(ArkError, match="LaunchFailure"):
            session.launch()
        session.close()


def test_a_kernel_that_hangs_in_all_workers_is_a_stall_and_keeps_its_memory(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ark_dist.launch.devices.cuda.EXIT_S", 0.2)
    loop, gpu = looping(), fake.gpus[0]
    with Opener(fake)(gpu_plan(loop.graph), timeout_s=0.2) as session:
        session.launch()
        gpu.is_frozen = True
        time.sleep(0.05)
        session.run(3, "forward", {})
        text = r"no progress for 0.2 s: worker 0 .*; then rank 0: the kernel did not exit"
        with pytest.raises(StallError, match=text):
            session.wait()
        with pytest.raises(StallError, match="did not exit within 0 s"):
            session.launch()
        gpu.is_frozen = False
        session.launch()
        set_stop(session, loop, NEVER)
        session.run(2, "forward", {})
        assert session.wait() == 2


def test_a_worker_that_does_not_see_the_abort_is_waited_for_a_limited_time(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ark_dist.launch.devices.cuda.EXIT_S", 0.2)
    loop, gpu = looping(), fake.gpus[0]
    with Opener(fake)(gpu_plan(loop.graph), timeout_s=0.4) as session:
        session.launch()
        gpu.is_frozen = True
        time.sleep(0.05)
        session.run(3, "forward", {})
        session._device.abort()
        with pytest.raises(StallError, match="did not exit within 0 s"):
            session.wait()
        gpu.is_frozen = False


def test_a_dropped_kernel_that_hangs_keeps_its_memory_and_its_module(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ark_dist.launch.devices.cuda.EXIT_S", 0.2)
    gpu = fake.gpus[0]
    device = device_of(loop_plan())
    device.compile(lambda path: None)
    device.start(device.allocate())
    gpu.is_frozen = True
    del device
    gc.collect()
    assert fake.problems == []
    gpu.is_frozen = False


def test_modules_are_used_again_and_never_shared(fake: Fake) -> None:
    opener, plan = Opener(fake), loop_plan(workers=2)
    for _ in range(3):
        with opener(plan), opener(plan):
            pass
        gc.collect()
    assert fake.loads == 2


def test_waiting_long_takes_little_of_a_core(fake: Fake) -> None:
    loop, gpu = looping(), fake.gpus[0]
    with Opener(fake)(gpu_plan(loop.graph)) as session:
        session.launch()
        gpu.is_frozen = True
        time.sleep(0.05)
        session.run(3, "forward", {})
        before = time.thread_time()
        with pytest.raises(TimeoutError):
            session.wait(1.0)
        assert time.thread_time() - before < 0.2
        gpu.is_frozen = False


def test_the_trace_of_a_gpu_is_that_of_a_cpu(fake: Fake, tmp_path: Path) -> None:
    loop = looping()
    opener = Opener(fake)
    opener.settings = replace(opener.settings, trace_path=tmp_path / "trace.json")
    with opener(gpu_plan(loop.graph)) as session:
        began = time.monotonic_ns()
        session.launch()
        set_stop(session, loop, NEVER)
        session.run(4, "forward", {})
        session.wait()
        session.stop()
        check_trace(tmp_path / "trace.json", session.plan, 4, began)


def test_a_bad_scalar_leaves_the_queue_as_it_was(fake: Fake) -> None:
    builder, values = pair_of_methods()
    with Opener(fake)(gpu_plan(builder.freeze())) as session:
        session.launch()
        session.run(1, "forward", {})
        bad = Command("forward", 1, 0, (("factor", "x"),))
        with pytest.raises(ValueError):
            session._device.post(bad)
        session.run(2, "forward", {})
        assert session.wait() == 3
        assert int(session.read(values["turns"].view)[0]) == 3


def test_copies_of_all_sizes_arrive(fake: Fake) -> None:
    check_copies(Gpu(0))


# Which device "auto" is.


def test_auto_is_the_gpu_where_there_is_one(fake: Fake) -> None:
    assert find_device("auto", read_settings({})) == "cuda"
    assert find_device("auto", read_settings({"ARK_DIST_DEVICE": "cpu"})) == "cpu"
    assert find_device("auto", read_settings({}), is_alone=False) == "cpu"
    assert find_device("auto", read_settings({}), gpu_id=2) == "cpu"
    for gpu in fake.gpus:
        gpu.capability = (8, 9)
    assert find_device("auto", read_settings({})) == "cpu"


def test_auto_is_the_cpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert find_device("auto", read_settings({})) == "cpu"
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert find_device("auto", read_settings({})) == "cpu"


def test_an_executor_takes_the_gpu_and_gives_it_back(fake: Fake) -> None:
    model = ark.Model("both")
    x = model.tensor(4, ark.FP32)
    y = model.add(x, 1.0)
    for sms in (None, range(1, 3)):
        with ark.Executor(model=model, sms=sms) as exe:
            assert exe.plan.target.kind == "cuda"
            assert exe.plan.target.worker_count == (4 if sms is None else 2)
            exe.compile()
            x.from_numpy(np.arange(4, dtype=np.float32))
            exe.launch()
            exe.run(1)
            exe.wait()
            assert y.to_numpy().tolist() == [1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"workers is 3; GPU 0 \(Fake GPU\) has 2 multiproc"):
        ark.Executor(model=model, sms=range(2), workers=3)


def test_libraries_are_told_to_load_their_kernels_at_once(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_MODULE_LOADING", raising=False)
    gpu_properties(0)
    assert os.environ["CUDA_MODULE_LOADING"] == "EAGER"
    monkeypatch.setenv("CUDA_MODULE_LOADING", "LAZY")
    gpu_properties(0)
    assert os.environ["CUDA_MODULE_LOADING"] == "LAZY"


def test_without_cupy_no_library_is_told_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.delenv("CUDA_MODULE_LOADING", raising=False)
    assert find_device("auto", read_settings({})) == "cpu"
    assert "CUDA_MODULE_LOADING" not in os.environ
