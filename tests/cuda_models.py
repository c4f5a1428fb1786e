"""Language models and encoders on a GPU: what the tests of the CPU ask for, and a whole folder."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import ark_dist as ark
from ark_dist.convert.gguf_folder import convert_gguf
from ark_dist.models.llama_config import read_llama_config
from ark_dist.models.quantization import INT8
from ark_dist.tokenizer import load_tokenizer
from tests import bert_models, test_generation, test_llama, test_sentence_encoder
from tests.bert_reference import Reference as BertReference
from tests.gguf_models import write_gguf
from tests.llama_models import (
    CONFIG,
    a_prompt,
    in_int8,
    prefill,
    random_weights,
    running,
    save_model,
)
from tests.llama_reference import Reference

_forced = partial(test_llama.test_logits_of_given_tokens_are_those_of_numpy, "cuda")
_lengths = partial(
    test_llama.test_prompts_of_any_length_use_one_kernel_and_give_the_logits_of_numpy, "cuda"
)
_greedy = partial(test_llama.test_a_run_writes_the_likeliest_tokens, "cuda")
_resting = test_llama.test_a_row_that_has_ended_rests_until_all_have
CHECKS: dict[str, Callable[[], None]] = {
    "given tokens, fp32": partial(_forced, "fp32"),
    "given tokens, fp16": partial(_forced, "fp16"),
    "given tokens, bf16": partial(_forced, "bf16"),
    "greedy, fp32": partial(_greedy, "fp32"),
    "greedy, bf16": partial(_greedy, "bf16"),
    "prompts of any length, one table": partial(_lengths, True),
    "prompts of any length, two tables": partial(_lengths, False),
    "a batch": partial(test_llama.test_rows_of_a_batch_write_what_they_write_alone, "cuda"),
    "a stop": partial(test_llama.test_a_stop_token_ends_the_run_and_the_next_one_goes_on, "cuda"),
    "rows that rest": partial(_resting, "cuda"),
    "the context's end": partial(test_llama.test_a_row_ends_with_the_context, "cuda"),
    "more prompts": partial(test_llama.test_a_prompt_follows_on_from_what_its_row_has, "cuda"),
    "samples": partial(test_llama.test_sampled_tokens_are_those_of_the_reference, "cuda"),
}
# What a GPU that is faked runs where time counts.
SHORT = ("given tokens, bf16", "greedy, fp32", "more prompts")


def logits_of_int8_weights_are_those_of_numpy(folder: Path, *, is_tied: bool, count: int) -> None:
    """Force so many given tokens through a folder with int8 matrices."""
    packed, plain = in_int8(random_weights(replace(CONFIG, tie_word_embeddings=is_tied)))
    changes = {"tie_word_embeddings": is_tied, "quantization_config": INT8}
    save_model(folder / "model", packed, **changes)
    config = replace(read_llama_config(folder / "model"), eos_token_ids=())
    assert config.is_int8
    tokens = a_prompt(count)
    wanted = Reference(config, plain).logits(tokens)
    with running(config, folder / "model", device="cuda") as (llama, exe):
        prefill(llama, exe, [tokens[:5]])
        for place in range(4, count):
            llama.token.from_numpy(np.array([tokens[place]]))
            exe.run(1, method="decode")
            exe.wait()
            test_llama.check_logits(llama.logits.to_numpy()[0], wanted[place])


def a_folder_writes_texts(
    folder: Path, patch: pytest.MonkeyPatch, *, is_short: bool = False
) -> None:
    """Load a tiny folder and write with it as its users do; in short only once or twice."""
    convert_gguf(write_gguf(folder / "tiny.gguf"), folder / "tiny", dtype="fp32")
    with ark.LanguageModel(folder / "tiny", batch=3, context=48, device="cuda") as model:
        test_generation.test_a_generation_is_one_command_after_its_prompts(model, patch)
        if is_short:
            return
        test_generation.test_rows_of_a_batch_are_what_they_are_alone(model)
        test_generation.test_a_prompt_is_a_text_its_tokens_or_a_chat(model)
        test_generation.test_a_seed_gives_the_same_texts_again(model)
        test_generation.test_pieces_of_a_stream_make_the_text(model)


def an_encoder_gives_the_vectors_of_numpy(folder: Path, *, is_short: bool = False) -> None:
    """Texts of all lengths get the right vectors; in short three of them."""
    tests = test_sentence_encoder
    weights = bert_models.random_weights(bert_models.CONFIG)
    bert_models.save_model(folder / "bert", weights)
    sentences = {"max_seq_length": tests.MAX_TOKENS, "do_lower_case": False}
    (folder / "bert" / "sentence_bert_config.json").write_text(json.dumps(sentences))
    tokenizer = load_tokenizer(folder / "bert", max_tokens=tests.MAX_TOKENS)
    reference = BertReference(bert_models.CONFIG, weights)
    wanted = reference.vectors([tokenizer.encode(text) for text in tests.TEXTS])
    with ark.SentenceEncoder(folder / "bert", batch=3, device="cuda") as model:
        if is_short:
            found = model.encode(tests.TEXTS[:3])
            np.testing.assert_allclose(found, wanted[:3], rtol=0, atol=tests.TOLERANCE)
            return
        tests.test_texts_get_the_vectors_of_numpy_in_their_order(model, wanted)
        tests.test_any_number_of_texts_may_be_given(model, wanted)
