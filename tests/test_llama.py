"""A small Llama against NumPy: prompts of any length, batches, ends, and going on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import ark_dist as ark
from ark_dist.core.op import OPS
from ark_dist.models.llama import MAX_BATCH, Llama
from ark_dist.models.llama_config import read_llama_config
from tests.llama_models import (
    CHUNK,
    CONFIG,
    CONTEXT,
    a_prompt,
    generate,
    prefill,
    random_weights,
    running,
    save_model,
)
from tests.llama_reference import Reference

LENGTHS = (1, 2, 7, CHUNK, CHUNK + 1, CHUNK + 2, 2 * CHUNK + 5, CONTEXT)
STEPS = 12
# Of the largest logit. fp32: some hundred roundings of 6e-8 after another. 16 bits: each of the
# results on the way is rounded to 8 (bf16) or 11 bits.
TOLERANCE = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}


def check_logits(
    found: npt.NDArray[np.generic], wanted: npt.NDArray[np.floating], dtype: str = "fp32"
) -> None:
    limit = TOLERANCE[dtype] * np.abs(wanted).max()
    np.testing.assert_allclose(found.astype(np.float64), wanted, rtol=0, atol=limit)


def check_greedy(reference: Reference, prompt: list[int], found: list[int]) -> None:
    """Each token is the likeliest one, or as good as that."""
    logits = reference.logits([*prompt, *found])[len(prompt) - 1 : -1]
    taken = logits[np.arange(len(found)), found]
    limit = TOLERANCE[reference.config.dtype] * np.abs(logits).max()
    assert (taken >= logits.max(axis=1) - 2 * limit).all(), (prompt, found)


@pytest.mark.parametrize("is_tied", [True, False])
def test_prompts_of_any_length_use_one_kernel_and_give_the_logits_of_numpy(
    device: str, is_tied: bool
) -> None:
    config = replace(CONFIG, tie_word_embeddings=is_tied)
    reference = Reference(config, random_weights(config))
    with running(config, device=device) as (llama, exe):
        for length in LENGTHS:
            prompt = a_prompt(length, seed=length)
            generate(llama, exe, [prompt], 1)
            check_logits(llama.logits.to_numpy()[0], reference.logits(prompt)[-1])
            assert llama.position.to_numpy() == length


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_logits_of_given_tokens_are_those_of_numpy(device: str, dtype: str) -> None:
    config = replace(CONFIG, dtype=dtype)
    tokens = a_prompt(24)
    wanted = Reference(config, random_weights(config)).logits(tokens)
    with running(config, device=device) as (llama, exe):
        prefill(llama, exe, [tokens[:10]])
        for place in range(9, len(tokens)):
            llama.token.from_numpy(np.array([tokens[place]]))
            exe.run(1, method="decode")
            exe.wait()
            check_logits(llama.logits.to_numpy()[0], wanted[place], dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_writes_the_likeliest_tokens(device: str, dtype: str) -> None:
    config = replace(CONFIG, dtype=dtype)
    reference = Reference(config, random_weights(config))
    prompt = a_prompt(13, seed=1)
    with running(config, device=device) as (llama, exe):
        (found,) = generate(llama, exe, [prompt], STEPS)
        assert len(found) == STEPS
        check_greedy(reference, prompt, found)
        if dtype == "fp32":
            assert found == reference.greedy(prompt, STEPS)


def test_rows_of_a_batch_write_what_they_write_alone(device: str) -> None:
    prompts = [a_prompt(length, seed=length) for length in (3, CHUNK + 1, 21, 1, 16)]
    with running(device=device, batch=5) as (llama, exe):
        together = generate(llama, exe, prompts, STEPS)
        logits = llama.logits.to_numpy()
    with running(device=device) as (llama, exe):
        for row, prompt in enumerate(prompts):
            assert generate(llama, exe, [prompt], STEPS) == [together[row]]
            check_logits(llama.logits.to_numpy()[0], logits[row].astype(np.float64))


def test_the_kernel_for_gpus_writes_the_same() -> None:
    prompts = [a_prompt(11), a_prompt(3, seed=1)]
    with running(device="numpy", batch=2) as (llama, exe):
        wanted = generate(llama, exe, prompts, 4)
    with running(device="emulated", batch=2) as (llama, exe):
        assert generate(llama, exe, prompts, 4) == wanted


def first_new(tokens: list[int], earliest: int) -> int:
    """The first index from `earliest` on whose token did not come up before."""
    return next(i for i in range(earliest, len(tokens)) if tokens[i] not in tokens[:i])


# Hot enough that tokens seldom repeat.
HOT = {"temperature": 2.0, "seed": 3}


def test_a_stop_token_ends_the_run_and_the_next_one_goes_on(device: str) -> None:
    prompt = a_prompt(11)
    with running(device=device) as (llama, exe):
        (free,) = generate(llama, exe, [prompt], 20, HOT)
        step = first_new(free, 6)
        llama.stop_tokens.from_numpy(np.array([*[-1] * 7, free[step]]))
        assert generate(llama, exe, [prompt], 64, HOT) == [free[: step + 1]]
        rest = 20 - (step + 1)
        exe.run(64, method="decode")
        done = exe.wait()
        (found,) = llama.new_tokens()
        assert found[:20] == free[: len(found)]
        assert done >= rest or found[-1] == free[step]


def test_a_run_reports_the_turns_up_to_the_stop_token(device: str) -> None:
    prompt = a_prompt(5)
    with running(device=device) as (llama, exe):
        free = generate(llama, exe, [prompt], 20, HOT)[0]
        stop = first_new(free, 6)
        llama.stop_tokens.from_numpy(np.array([free[stop], *[-1] * 7]))
        prefill(llama, exe, [prompt])
        exe.run(64, method="decode", scalars=HOT)
        assert exe.wait() == stop + 1


def test_a_row_that_has_ended_rests_until_all_have(device: str) -> None:
    prompts = [a_prompt(4), a_prompt(9, seed=1)]
    with running(device=device, batch=2) as (llama, exe):
        free = generate(llama, exe, prompts, 20, HOT)
        early, late = first_new(free[0], 3), first_new(free[1], 8)
        while free[0][early] in free[1][: late + 1] or free[1][late] in free[0][: early + 1]:
            late = first_new(free[1], late + 1)
        stops = [free[0][early], free[1][late], *[-1] * 6]
        llama.stop_tokens.from_numpy(np.array(stops))
        ended = [free[0][: early + 1], free[1][: late + 1]]
        assert generate(llama, exe, prompts, early + 3, HOT) == [
            ended[0],
            free[1][: early + 3],
        ]
        assert llama.is_done.to_numpy().tolist() == [1, 0]
        exe.run(64, method="decode")
        assert exe.wait() == late + 1 - (early + 3)
        assert llama.new_tokens() == ended
        # All go on, each from where it was.
        llama.stop_tokens.from_numpy(np.full(8, -1))
        exe.run(3, method="decode")
        assert exe.wait() == 3
        assert llama.new_tokens() == [free[0][: early + 4], free[1][: late + 4]]


def test_a_row_ends_with_the_context(device: str) -> None:
    prompts = [a_prompt(CONTEXT - 3), a_prompt(CONTEXT)]
    with running(device=device, batch=2) as (llama, exe):
        found = generate(llama, exe, prompts, 64)
        assert [len(tokens) for tokens in found] == [4, 1]
        assert llama.position.to_numpy().tolist() == [CONTEXT, CONTEXT]
        exe.run(64, method="decode")
        assert exe.wait() == 1
        assert llama.new_tokens() == found


def test_a_prompt_follows_on_from_what_its_row_has(device: str) -> None:
    first, second = a_prompt(9), a_prompt(10, seed=1)
    with running(device=device, batch=2) as (llama, exe):
        (written, other) = generate(llama, exe, [first, a_prompt(3)], 4)
        # The other row is left as it is.
        found = generate(llama, exe, [second, []], 5, restart=False)
        assert found[1][:4] == other
        whole = [*first, *written, *second]
        alone = generate(llama, exe, [whole, a_prompt(3)], 5)
        assert found[0] == alone[0]
        assert found[1][:5] == alone[1]
        assert len(found[1]) == 9


def test_rows_without_a_prompt_rest(device: str) -> None:
    prompt = a_prompt(6)
    with running(device=device, batch=3) as (llama, exe):
        alone = generate(llama, exe, [prompt] * 3, 5)[0]
        assert generate(llama, exe, [[], prompt, []], 5) == [[], alone, []]
        assert generate(llama, exe, [[], [], prompt], 5, restart=False)[2] == alone


def test_sampled_tokens_are_those_of_the_reference(device: str) -> None:
    settings = {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "seed": 11}
    prompts = [a_prompt(4), a_prompt(7, seed=1)]
    with running(device=device, batch=2) as (llama, exe):
        once = generate(llama, exe, prompts, STEPS, settings)
        prefill(llama, exe, prompts)
        position = llama.position.to_numpy()
        for step in range(STEPS):
            exe.run(1, method="decode")
            exe.wait()
            values = [np.array([settings[n]]) for n in ("temperature", "top_k", "top_p", "seed")]
            inputs = (llama.logits.to_numpy(), position + 1 + step, *values)
            drawn = OPS["sample"].reference(inputs, {}, ((0, 2),))
            assert drawn.tolist() == llama.token.to_numpy().tolist()
            assert [tokens[step] for tokens in once] == drawn.tolist()


def test_a_folder_of_hugging_face_is_read_by_its_names(tmp_path: Path) -> None:
    config = replace(CONFIG, dtype="bf16", eos_token_ids=(210,))
    weights = random_weights(config)
    folder = save_model(tmp_path / "model", weights, torch_dtype="bfloat16")
    assert read_llama_config(folder) == config
    with running(config, folder, device="numpy") as (llama, _):
        assert llama.params_dict().keys() == weights.keys()
        assert llama.stop_tokens.to_numpy().tolist() == [210, *[-1] * 7]
        state = llama.state_dict()
        assert all(np.array_equal(state[name], array) for name, array in weights.items())


@pytest.mark.parametrize(
    ("prompts", "text"),
    [
        ([[1]], "1 prompts, wanted 2"),
        ([[1], [211]], "row 1 has the token 211, wanted 0 to 210"),
        ([[-1], [1]], "row 0 has the token -1"),
        ([[1], [1] * 41], "row 1 has 41 tokens, and the context 40"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompts: list[list[int]], text: str) -> None:
    with (
        running(device="numpy", batch=2) as (llama, _),
        pytest.raises(ValueError, match=f"set_prompts: {text}"),
    ):
        llama.set_prompts(prompts)


def test_a_prompt_that_does_not_fit_behind_the_others_is_refused() -> None:
    with running(device="numpy") as (llama, exe):
        generate(llama, exe, [a_prompt(30)], 5)
        with pytest.raises(ValueError, match="row 0 has 41 tokens, and the context 40"):
            llama.set_prompts([[1] * 6], restart=False)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"batch": 0}, "batch is 0; it must be 1 to 16"),
        ({"batch": MAX_BATCH + 1}, "batch is 17"),
        ({"context": 65}, "context is 65; it must be 1 to 64"),
        ({"context": 0}, "context is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'; it must be one of fp32, fp16, bf16"),
    ],
)
def test_sizes_out_of_range_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"Llama: {text}"):
        Llama(CONFIG, graph=ark.Model(), **arguments)


def test_the_largest_batch_and_the_whole_context_are_there() -> None:
    llama = Llama(CONFIG, batch=MAX_BATCH, graph=ark.Model(), chunk=64)
    assert llama.context == CONFIG.max_position_embeddings
    assert llama.logits.shape == (MAX_BATCH, CONFIG.vocab_size)
