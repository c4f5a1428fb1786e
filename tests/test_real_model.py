"""SmolLM2-135M-Instruct against NumPy in float32 on the same weights, on any mesh."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.launch.devices import cpu
from ark_dist.launch.session import Session
from ark_dist.models.llama import NO_TOKEN, Llama
from ark_dist.models.llama_config import read_llama_config
from tests.llama_models import generate
from tests.mpi import run_mpi
from tests.real_model import (
    STEPS,
    Logits,
    a_prompt,
    folder,
    reference,
    rows,
    wanted,
    write_rows,
)

pytestmark = [pytest.mark.long, pytest.mark.real]

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "tests" / "real_ranks.py"
MESHES = [{"tp": 1}, {"tp": 2}, {"tp": 3}, {"tp": 4}, {"pp": 2}]
LIMIT_S = 120.0
# Around the chunk of 128 tokens, and several chunks.
LENGTHS = (1, 127, 128, 129, 512, 1000)
MANY = 64
BLOCK_US = 200_000
# Python, its libraries, MPI, the tokenizer.
BESIDES_MIB = 200
# Prints the most memory that each rank has had, and what its weights and state take, in MiB.
MEMORY = """
import re, sys
from pathlib import Path
import ark_dist as ark

with ark.LanguageModel(sys.argv[1], context=2048) as model:
    model.generate("Once upon a time", max_new_tokens=20)
    weights, state, *_ = model.executor.plan.arena_bytes
most = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print("memory", int(most[1]) >> 10, (weights + state) >> 20, flush=True)
"""
# Of the largest logit. fp32: sums of up to 1536 products, 60 layers after another. bf16: what goes
# into products and caches is rounded to 8 bits, with matrices of int8 as well.
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2, "int8": 2e-2}
# Logits that are no further apart are a tie. bf16: each of them may be off by the tolerance.
TIE = {"fp32": 0.01, "bf16": 1.6, "int8": 1.6}
# Of the positions. Seldom, roundings move all logits of a position by nearly the same, which no
# probability depends on: there they have to be right up to what they are moved by.
ALL_BUT_MOVED = 0.99


@contextmanager
def running(dtype: str, batch: int = 1) -> Iterator[tuple[Llama, ark.Executor]]:
    """The model on one rank, ready to run, with its logits and without stop tokens."""
    graph = ark.Model("real")
    llama = Llama(
        read_llama_config(folder(dtype)), batch=batch, context=1024, graph=graph, keep_logits=True
    )
    with ark.Executor(model=graph, device="cpu") as exe:
        exe.compile()
        llama.load_state_dict(folder(dtype))
        exe.launch()
        llama.stop_tokens.from_numpy(np.full(llama.stop_tokens.shape, NO_TOKEN, np.int32))
        yield llama, exe


@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_logits_of_given_tokens_are_those_of_numpy(
    dtype: str, axes: dict[str, int], tmp_path: Path
) -> None:
    target = tmp_path / "logits.npy"
    arguments = [str(folder(dtype)), str(axes).replace("'", '"')]
    arguments += [str(write_rows(tmp_path / "rows.json")), str(target)]
    done = run_mpi(prod(axes.values()), PROGRAM, *arguments, timeout_s=LIMIT_S)
    assert done.returncode == 0, done
    check_forced(dtype, str(axes), np.load(target), wanted(dtype))


def check_forced(dtype: str, label: str, found: Logits, expected: Logits) -> None:
    """Compare logits of given tokens with NumPy's."""
    error = np.abs(found - expected).max(axis=-1)
    tell(f"{dtype} {label}", found, expected, error)
    limit = TOLERANCE[dtype] * np.abs(expected).max()
    if dtype != "fp32":
        assert (error <= limit).mean() >= ALL_BUT_MOVED
        difference = found - expected
        difference -= difference.mean(axis=-1, keepdims=True)
        error = np.abs(difference).max(axis=-1)
    assert error.max() <= limit
    check_choices(found, expected, TIE[dtype])


@pytest.mark.parametrize("size", [1, 2])
def test_a_rank_needs_its_weights_its_caches_and_little_else(size: int) -> None:
    done = run_mpi(size, MEMORY, str(folder("bf16")), timeout_s=LIMIT_S)
    assert done.returncode == 0, done
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("memory")]
    print("\nMiB at most, and of weights and caches:", [line[1:] for line in lines])
    assert len(lines) == size
    for _, most, own in lines:
        assert int(most) <= int(own) + BESIDES_MIB


def check_choices(found: Logits, expected: Logits, tie: float) -> None:
    """The likeliest token is the one expected, or one of a tie there."""
    best = found.argmax(axis=-1)
    taken = np.take_along_axis(expected, best[..., None], axis=-1)[..., 0]
    top = np.partition(expected, -2, axis=-1)[..., -2:]
    is_clear = top[..., 1] - top[..., 0] > tie
    assert (best == expected.argmax(axis=-1))[is_clear].all()
    assert (taken >= top[..., 1] - tie).all()
    assert is_clear.any()


def counted(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[tuple[Any, ...]]:
    """The positional arguments of all calls of a function from now on."""
    found: list[tuple[Any, ...]] = []
    call = getattr(owner, name)

    def noted(*args: object, **options: object) -> object:
        found.append(args)
        return call(*args, **options)

    monkeypatch.setattr(owner, name, noted)
    return found


def test_prompts_of_any_length_use_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = counted(monkeypatch, cpu, "compile_source")
    model = reference("fp32")
    with running("fp32") as (llama, exe):
        for length in LENGTHS:
            prompt = a_prompt(length)
            generate(llama, exe, [prompt], 1)
            expected = model.logits(prompt)[-1]
            error = np.abs(llama.logits.to_numpy()[0] - expected).max()
            print(f"\n{length} tokens: error {error / np.abs(expected).max():.2e}")
            assert error <= TOLERANCE["fp32"] * np.abs(expected).max()
    assert len(compiled) == 1


def test_rows_of_a_batch_write_what_they_write_alone() -> None:
    prompts = [row[: 5 + 7 * i] for i, row in enumerate(rows())][:4]
    with running("fp32", batch=4) as (llama, exe):
        together = generate(llama, exe, prompts, STEPS)
    with running("fp32") as (llama, exe):
        assert [generate(llama, exe, [prompt], STEPS)[0] for prompt in prompts] == together


def test_one_command_writes_all_tokens_while_python_is_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    python = ctypes.PyDLL(None)  # whose functions are called without giving other threads a turn
    commands = counted(monkeypatch, Session, "run")
    seen: list[tuple[int, int]] = []
    with ark.LanguageModel(folder("bf16"), context=1024) as model:

        def written() -> int:
            return int((model.executor.peek(model.llama.tokens) != NO_TOKEN).sum())

        def block(row: int, text: str) -> None:
            before = written()
            python.usleep(BLOCK_US)
            seen.append((before, written()))

        (found,) = model.generate(rows()[0], max_new_tokens=MANY, on_text=block)
        print(f"\ntokens before and after Python was blocked: {seen}")
        methods = [method for _, _, method, *_ in commands]
        (again,) = model.generate(rows()[0], max_new_tokens=MANY)
    assert methods == ["prefill", "decode"]
    assert any(after > before for before, after in seen)
    assert found == again


def tell(label: str, found: Logits, expected: Logits, error: Logits) -> None:
    """Print the figures, for `pytest -s`."""
    scale = np.abs(expected)
    each = error / scale.max(axis=-1)
    agreed = (found.argmax(axis=-1) == expected.argmax(axis=-1)).mean()
    print(
        f"\n{label}: error {error.max() / scale.max():.2e} of the largest logit "
        f"({scale.max():.1f}); of each position's largest: median {np.median(each):.2e}, "
        f"most {each.max():.2e}; same choice at {agreed:.1%} of {error.size}"
    )
