"""A small Llama with 9 and 3 heads gives on any mesh what it gives on one rank."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import ark_dist as ark
from ark_dist.checkpoint.reader import Checkpoint
from ark_dist.comm.communicator import Communicator
from ark_dist.models.llama import Llama
from ark_dist.models.llama_config import read_llama_config
from ark_dist.models.quantization import INT8
from tests.llama_models import (
    CONFIG,
    a_prompt,
    generate,
    in_int8,
    random_weights,
    running,
    save_model,
)
from tests.mpi import run_mpi
from tests.rank_threads import on_ranks

Floats = npt.NDArray[np.float64]

MESHES: list[dict[str, int]] = [
    {"tp": 2},
    {"tp": 3},
    {"tp": 4},
    {"pp": 2},
    {"pp": 3},
    {"pp": 2, "tp": 2},
]
STEPS = 10
PROMPTS = [a_prompt(3), a_prompt(11, seed=1)]
HOT = {"temperature": 2.0, "seed": 3}
# Of the largest logit, in fp32: partial sums are added in another order.
TOLERANCE = 1e-5


def size_of(axes: Mapping[str, int]) -> int:
    return int(np.prod([*axes.values()]))


def wanted(device: str) -> tuple[list[list[int]], list[list[int]], Floats]:
    """Likeliest and sampled tokens, and the last logits, on one rank."""
    with running(device=device, batch=2) as (llama, exe):
        greedy = generate(llama, exe, PROMPTS, STEPS)
        sampled = generate(llama, exe, PROMPTS, STEPS, HOT)
        return greedy, sampled, np.asarray(llama.logits.to_numpy(), np.float64)


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_any_mesh_writes_what_one_rank_writes(
    tmp_path: Path, device: str, axes: dict[str, int]
) -> None:
    folder = save_model(tmp_path / "model", random_weights(CONFIG))
    greedy, sampled, logits = wanted(device)

    def work(communicator: Communicator) -> None:
        with running(
            weights=folder, device=device, workers=1, batch=2, axes=axes, communicator=communicator
        ) as (llama, exe):
            assert generate(llama, exe, PROMPTS, STEPS) == greedy
            assert generate(llama, exe, PROMPTS, STEPS, HOT) == sampled
            found = np.asarray(llama.logits.to_numpy(), np.float64)
        limit = TOLERANCE * np.abs(logits).max()
        np.testing.assert_allclose(found, logits, rtol=0, atol=limit)

    on_ranks(size_of(axes), work)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("axes", [{}, {"tp": 2}, {"tp": 3}, {"pp": 2, "tp": 2}], ids=str)
def test_int8_weights_are_as_good_as_what_they_stand_for(
    tmp_path: Path, device: str, axes: dict[str, int], is_tied: bool
) -> None:
    config = replace(CONFIG, tie_word_embeddings=is_tied)
    packed, plain = in_int8(random_weights(config))
    with running(config, plain, device=device, batch=2) as (llama, exe):
        greedy = generate(llama, exe, PROMPTS, STEPS)
        logits = np.asarray(llama.logits.to_numpy(), np.float64)
    folder = save_model(
        tmp_path / "model", packed, tie_word_embeddings=is_tied, quantization_config=INT8
    )
    config = replace(read_llama_config(folder), eos_token_ids=())
    assert config.is_int8

    def work(communicator: Communicator | None = None) -> None:
        with running(
            config, folder, device=device, workers=1, batch=2, axes=axes, communicator=communicator
        ) as (llama, exe):
            assert generate(llama, exe, PROMPTS, STEPS) == greedy
            found = np.asarray(llama.logits.to_numpy(), np.float64)
        limit = TOLERANCE * np.abs(logits).max()
        np.testing.assert_allclose(found, logits, rtol=0, atol=limit)

    if axes:
        on_ranks(size_of(axes), work)
    else:
        work()


@pytest.mark.parametrize("axes", [{"tp": 2}, {"pp": 2}], ids=str)
def test_all_ranks_report_the_same_end_and_go_on(device: str, axes: dict[str, int]) -> None:
    prompt, step = a_prompt(11), 7
    with running(device=device) as (llama, exe):
        seed = next(seed for seed in range(100) if is_new(free(llama, exe, prompt, seed), step))
        tokens = free(llama, exe, prompt, seed)

    def work(communicator: Communicator) -> None:
        with running(device=device, workers=1, axes=axes, communicator=communicator) as made:
            llama, exe = made
            llama.stop_tokens.from_numpy(np.array([tokens[step - 1], *[-1] * 7]))
            turns = llama.set_prompts([prompt])
            exe.run(turns, method="prefill", scalars={"cursor": 0})
            exe.wait()
            exe.run(64, method="decode", scalars={"temperature": 2.0, "seed": seed})
            assert exe.wait() == step
            assert llama.new_tokens() == [tokens[:step]]
            llama.stop_tokens.from_numpy(np.full(8, -1))
            exe.run(len(tokens) - step, method="decode")
            assert exe.wait() == len(tokens) - step
            assert llama.new_tokens() == [tokens]

    on_ranks(size_of(axes), work)


def free(llama: Llama, exe: ark.Executor, prompt: list[int], seed: int) -> list[int]:
    """What a run writes without any stop token."""
    return generate(llama, exe, [prompt], 12, {"temperature": 2.0, "seed": seed})[0]


def is_new(tokens: list[int], count: int) -> bool:
    return tokens[count - 1] not in tokens[: count - 1]


def test_each_rank_reads_its_slices_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "model", random_weights(CONFIG))
    boxes: dict[str, list[object]] = {}
    read = Checkpoint.read

    def noted(self: Checkpoint, name: str, box: object, *rest: object, **options: object) -> None:
        boxes.setdefault(name, []).append(box)
        read(self, name, box, *rest, **options)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(Checkpoint, "read", noted)

    def work(communicator: Communicator) -> None:
        with running(weights=folder, device="numpy", axes={"tp": 2}, communicator=communicator):
            pass

    on_ranks(2, work)
    depth, hidden = CONFIG.head_dim, CONFIG.hidden_size

    def parts(name: str) -> list[object]:
        return sorted(boxes[f"model.{name}.weight"], key=str)

    # 9 heads are 5 and 4; of the 3 they share both ranks have the middle one.
    attention = "layers.0.self_attn."
    rows, whole = [(0, 5 * depth), (5 * depth, 9 * depth)], (0, hidden)
    assert parts(attention + "q_proj") == [(r, whole) for r in rows]
    assert parts(attention + "k_proj") == [((0, 2 * depth), whole), ((depth, 3 * depth), whole)]
    assert parts(attention + "o_proj") == [(whole, r) for r in rows]
    assert parts("embed_tokens") == [((0, 106), whole), ((106, 211), whole)]
    assert parts("norm") == [(whole,)] * 2


def test_more_ranks_than_heads_leave_some_without() -> None:
    greedy, _, _ = wanted("numpy")

    def work(communicator: Communicator) -> None:
        axes = {"tp": CONFIG.num_attention_heads + 1}
        with running(device="numpy", batch=2, axes=axes, communicator=communicator) as made:
            assert generate(*made, PROMPTS, STEPS) == greedy

    on_ranks(CONFIG.num_attention_heads + 1, work)


def test_more_stages_than_layers_are_refused() -> None:
    def work(communicator: Communicator) -> None:
        axes = {"pp": 4}
        with (
            pytest.raises(ark.ConfigError, match="the mesh has 4 stages on axis 'pp', and the"),
            running(device="numpy", axes=axes, communicator=communicator),
        ):
            pass

    on_ranks(4, work)


PROGRAM = """
import json, sys
import ark_dist as ark
from ark_dist.models.llama import Llama
from ark_dist.models.llama_config import read_llama_config
from ark_dist.models.quantization import INT8
from ark_dist.models.llama_config import read_llama_config

folder, prompts = sys.argv[1], json.loads(sys.argv[2])
mesh = ark.Mesh({"tp": -1})
llama = Llama(read_llama_config(folder), batch=len(prompts), context=40, chunk=8, mesh=mesh)
with ark.Executor(model=llama.graph, mesh=mesh, device="cpu", workers=1) as exe:
    exe.compile()
    llama.load_state_dict(folder)
    exe.launch()
    turns = llama.set_prompts(prompts)
    exe.run(turns, method="prefill", scalars={"cursor": 0})
    exe.run(10, method="decode")
    done = exe.wait()
    print("rank", ark.rank(), json.dumps([done, llama.new_tokens()]), flush=True)
"""


def test_a_folder_runs_on_the_ranks_of_mpirun(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", random_weights(CONFIG), eos_token_id=None)
    greedy, _, _ = wanted("cpu")
    done = run_mpi(2, PROGRAM, str(folder), json.dumps(PROMPTS), timeout_s=120.0)
    assert done.returncode == 0, done
    lines = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    # Two turns of prefill and ten of decode.
    assert lines == [f"rank {rank} {json.dumps([12, greedy])}" for rank in range(2)]
