"""What users write, with a GPU as its device: the documents' programs, and calls of the face."""

import re
import runpy
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.convert.gguf_folder import convert_gguf
from ark_dist.core.settings import read_settings
from ark_dist.launch.open import find_device
from tests.gguf_models import write_gguf
from tests.patience import patient
from tests.test_docs import ROOT, Block, programs
from tests.test_examples import MAX_ERROR, NUMBER, TUTORIALS

# Programs of the documents that take the device they are given; others name one, or have none.
SHOWN = [
    pytest.param(block, shown, id=block.place)
    for block, shown in programs()
    if block.info == "python" and shown is not None and "device=" not in block.text
]


def prints(
    path: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch, *words: str
) -> str:
    """Run a program in this process, where cupy may be faked, and return what it prints."""
    patch.setenv("ARK_DIST_DEVICE", "cuda")
    patch.setattr(sys, "argv", [str(path), *words])
    capsys.readouterr()
    ark.init(reset=True)
    runpy.run_path(str(path), run_name="__main__")
    return capsys.readouterr().out


def a_shown_program_prints_what_is_shown(
    block: Block,
    shown: Block,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    patch: pytest.MonkeyPatch,
) -> None:
    path = folder / "shown.py"
    path.write_text(block.text, "utf-8")
    assert prints(path, capsys, patch) == shown.text, block.place


def both_tutorials_print_their_errors(
    capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> None:
    found = re.fullmatch(
        f"max error:  ({NUMBER}) mean error:  ({NUMBER})\n",
        prints(TUTORIALS / "model_tutorial.py", capsys, patch),
    )
    assert found is not None
    assert float(found[1]) == float(found[2]) == 0
    found = re.fullmatch(
        "ARK module test\nbatch_size: 1 seq_len: 64 d_model: 512 d_ff: 2048\n"
        f"max error:  ({NUMBER}) avg error:  ({NUMBER})\n",
        prints(TUTORIALS / "module_tutorial.py", capsys, patch),
    )
    assert found is not None
    assert 0 < float(found[2]) < float(found[1]) <= MAX_ERROR


def examples_of_several_ranks_run_on_one(
    capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> None:
    for name in ("mesh.py", "ring.py", "pipeline.py"):
        printed = prints(ROOT / "examples" / "ranks" / name, capsys, patch)
        assert printed.count(" of 1: ") == 1, f"{name}: {printed}"


def a_plan_is_printed(capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / "plan_smollm2.py"
    printed = prints(path, capsys, patch, "--device", "cuda", "--layers", "2")
    assert printed.count(" = attention(") == 2, printed


def a_text_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
) -> None:
    model = folder / "tiny"
    convert_gguf(write_gguf(folder / "tiny.gguf"), model, dtype="fp32")
    options = ["--model", str(model), "--context", "40", "--max-new-tokens", "6"]
    path = ROOT / "examples" / "generate.py"
    assert prints(path, capsys, patch, "hello w", *options).startswith("hello w")


def an_executor_runs_methods_with_state_and_scalars(workers: int | None) -> None:
    model = ark.Model("methods")
    total = model.state([3, 50], name="total")
    rate = model.scalar("rate", ark.FP32, init=2.0)
    x = model.tensor([3, 50], name="x")
    model.assign(total, total + x * rate)
    with model.method("shrink"):
        half = model.mul(total, 0.5, name="half")
        model.assign(total, half)
    with ark.Executor(model=model, device="cuda", workers=workers) as exe:
        exe.compile()
        x.from_numpy(np.ones([3, 50]))
        for _ in range(2):
            exe.launch()
            exe.run(2)
            exe.run(3, scalars={"rate": 1.0})
            exe.run(1, method="shrink")
            assert exe.wait(patient(20.0)) == 6
            assert (total.to_numpy() == (2 * 2.0 + 3 * 1.0) / 2).all()
            assert not exe.can_peek(total)
            exe.reset_state()
            assert exe.stop() > 0
        with pytest.raises(ark.LifecycleError, match="run"):
            exe.run(1)


def runs_go_on_without_the_caller(workers: int | None) -> None:
    with ark.Runtime(device="cuda", workers=workers) as runtime:
        count = ark.state([1], ark.INT32, name="count")
        ark.assign(count, count + 1)
        runtime.launch()
        began = time.monotonic()
        assert runtime.run(iter=2000, non_blocking=True) is None
        assert runtime.run(iter=2000, non_blocking=True) is None
        assert time.monotonic() - began < patient(1.0)
        assert runtime.wait() == 4000
        assert count.to_numpy() == 4000
        assert runtime.run(iter=5) == 5
        runtime.stop()
        assert count.to_numpy() == 4005
        runtime.launch()
        assert runtime.run() == 1
        assert count.to_numpy() == 4006


def weights_come_back_bit_by_bit(workers: int | None) -> None:
    rng = np.random.default_rng(0)
    shapes = {"turned": (70, 48), "plain": (48, 70), "table": (33, 64), "vector": (70,)}
    for dtype in (ark.FP32, ark.BF16, ark.FP16):
        ark.init(reset=True)
        model = ark.Model("weights")
        made = {name: model.parameter(shape, dtype, name=name) for name, shape in shapes.items()}
        x = model.tensor([2, 48], dtype)
        y = model.matmul(x, made["turned"], transpose_other=True) + made["vector"]
        model.matmul(x, made["plain"])
        model.matmul(model.embedding(model.tensor([2], ark.INT32), made["table"]), made["table"],
                     transpose_other=True)  # fmt: skip
        model.mul(y, 2.0)
        with ark.Executor(model=model, device="cuda", workers=workers) as exe:
            exe.compile()
            # All bits, so also NaN with payloads.
            size = dtype.numpy.itemsize
            data = {
                name: rng.integers(0, 256, (*shape[:-1], shape[-1] * size), np.uint8)
                for name, shape in shapes.items()
            }
            for name, raw in data.items():
                made[name].from_numpy(raw.view(dtype.numpy))
            exe.launch()
            for name, raw in data.items():
                found = np.ascontiguousarray(made[name].to_numpy())
                assert np.array_equal(found.view(np.uint8), raw), f"{name}, {dtype}"


def the_first_operator_without_a_number_is_named(workers: int | None) -> None:
    model = ark.Model("finite")
    x = model.tensor([40, 70], name="x")
    y = model.log(x, name="logarithm")
    model.reduce_sum(y * 2.0, axis=0, name="total")
    with ark.Executor(model=model, device="cuda", workers=workers, check_numerics=True) as exe:
        exe.compile()
        exe.launch()
        x.from_numpy(np.ones([40, 70]))
        exe.run(2)
        assert exe.wait() == 2
        data = np.ones([40, 70])
        data[39, 69] = -1.0
        x.from_numpy(data)
        exe.run(2)
        with pytest.raises(ark.TaskError, match="'check_finite of log logarithm'"):
            exe.wait()


def executors_share_the_gpu_that_auto_finds(workers: int | None) -> None:
    assert find_device("auto", read_settings({})) == "cuda"
    made = [adder(term) for term in (1.0, 2.0, 3.0)]
    ranges = (range(2), range(2, 4), range(1, 3))
    with ExitStack() as stack:
        exes = [
            stack.enter_context(ark.Executor(model=model, device="cuda", sms=sms))
            for (model, _, _), sms in zip(made, ranges, strict=True)
        ]
        for exe, (_, x, _) in zip(exes, made, strict=True):
            exe.compile()
            x.from_numpy(np.arange(64, dtype=np.float32))
        for exe in exes[:2]:
            exe.launch()
        with pytest.raises(ark.DeviceBusy, match=r"multiprocessors 1 to 2 of GPU 0"):
            exes[2].launch()
        for exe in exes[:2]:
            exe.run(3)
        for exe, (_, _, y), term in zip(exes[:2], made, (1.0, 2.0), strict=False):
            assert exe.wait(patient(20.0)) == 3
            assert np.array_equal(y.to_numpy(), np.arange(64) + term)


def adder(term: float) -> tuple[ark.Model, ark.Tensor, ark.Tensor]:
    model = ark.Model(f"adds {term:g}")
    x = model.tensor([64], name="x")
    return model, x, model.add(x, term)


CASES: dict[str, Callable[[int | None], None]] = {
    case.__name__.replace("_", " "): case
    for case in (
        an_executor_runs_methods_with_state_and_scalars,
        runs_go_on_without_the_caller,
        weights_come_back_bit_by_bit,
        the_first_operator_without_a_number_is_named,
        executors_share_the_gpu_that_auto_finds,
    )
}
