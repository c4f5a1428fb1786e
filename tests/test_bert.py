"""A small BERT against NumPy: rows of any length, on one rank and on several."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import ark_dist as ark
from ark_dist.checkpoint.reader import Checkpoint
from ark_dist.comm.communicator import Communicator
from ark_dist.models.bert import Bert
from ark_dist.models.bert_config import read_bert_config
from tests.bert_models import (
    CONFIG,
    LENGTH,
    encode,
    random_rows,
    random_weights,
    running,
    save_model,
)
from tests.bert_reference import Reference
from tests.rank_threads import on_ranks

# Runs of rows: of the shortest method, of both its sides, of the longest; of a part of a batch.
RUNS: list[list[int]] = [[1, 7, 32, 3], [40, 2, 33, 1], [9], [31, 40], [5, 5, 5, 5]]
# Of the largest element of a vector. fp32: some dozen roundings of 6e-8 after another. 16 bits:
# each of the results on the way is rounded to 8 (bf16) or 11 bits, and the mean evens some out.
TOLERANCE = {"fp32": 3e-6, "fp16": 2e-3, "bf16": 16e-3}


def check(
    found: npt.NDArray[np.generic],
    rows: Sequence[Sequence[int]],
    reference: Reference,
    dtype: str = "fp32",
) -> None:
    wanted = reference.vectors(rows)
    limit = TOLERANCE[dtype] * np.abs(wanted).max()
    np.testing.assert_allclose(found.astype(np.float64), wanted, rtol=0, atol=limit)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_rows_of_any_length_get_the_vectors_of_numpy(device: str, dtype: str) -> None:
    config = replace(CONFIG, dtype=dtype)
    reference = Reference(config, random_weights(config))
    with running(config, device=device, batch=4) as (bert, exe):
        for seed, lengths in enumerate(RUNS):
            rows = random_rows(lengths, seed)
            check(encode(bert, exe, rows), rows, reference, dtype)
            norms = np.linalg.norm(bert.vectors.to_numpy(), axis=1)
            # Rows without tokens have zeros.
            wanted = [*[1.0] * len(rows), *[0.0] * (4 - len(rows))]
            np.testing.assert_allclose(norms, wanted, atol=1e-6)


def test_the_kernel_for_gpus_gives_the_same() -> None:
    rows = random_rows([3, 40])
    with running(device="emulated", batch=2) as (bert, exe):
        check(encode(bert, exe, rows), rows, Reference(CONFIG, random_weights(CONFIG)))


def test_what_stands_behind_a_rows_tokens_does_not_count(device: str) -> None:
    rows = random_rows([1, 17, 30])
    with running(device=device, batch=3) as (bert, exe):
        wanted = encode(bert, exe, rows)
        array = np.array(random_rows([LENGTH] * 3, seed=1), np.int32)
        for row, tokens in enumerate(rows):
            array[row, : len(tokens)] = tokens
        method = bert.set_tokens(rows)
        bert.tokens.from_numpy(array)
        exe.run(method=method)
        exe.wait()
        assert np.array_equal(bert.vectors.to_numpy(), wanted)


def test_a_run_takes_the_shortest_method_that_fits(device: str) -> None:
    with running(device=device, batch=2) as (bert, _):
        assert bert.methods == {32: "encode_32", 40: "encode_40"}
        lengths = ([1, 2], [32, 5], [33, 5], [1, 40])
        names = [bert.set_tokens(random_rows(each)) for each in lengths]
        assert names == ["encode_32", "encode_32", "encode_40", "encode_40"]


@pytest.mark.parametrize(("size", "dtype"), [(2, "fp32"), (3, "fp32"), (4, "fp32"), (3, "bf16")])
def test_any_number_of_ranks_gives_the_vectors_of_numpy(
    tmp_path: Path, device: str, size: int, dtype: str
) -> None:
    config = replace(CONFIG, dtype=dtype)
    weights = random_weights(config)
    folder = save_model(tmp_path / "model", weights)
    reference = Reference(config, weights)

    def work(communicator: Communicator) -> None:
        with running(
            config, folder, device=device, workers=1, batch=4, axes={"tp": size},
            communicator=communicator,
        ) as (bert, exe):  # fmt: skip
            for seed, lengths in enumerate(RUNS):
                rows = random_rows(lengths, seed)
                check(encode(bert, exe, rows), rows, reference, dtype)

    on_ranks(size, work)


def test_each_rank_reads_its_slices_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "model", random_weights(CONFIG))
    boxes: dict[str, list[object]] = {}
    read = Checkpoint.read

    def noted(self: Checkpoint, name: str, box: object, *rest: object, **options: object) -> None:
        boxes.setdefault(name, []).append(box)
        read(self, name, box, *rest, **options)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(Checkpoint, "read", noted)

    def work(communicator: Communicator) -> None:
        with running(weights=folder, device="numpy", axes={"tp": 3}, communicator=communicator):
            pass

    on_ranks(3, work)
    parts = {name: sorted(found, key=str) for name, found in boxes.items()}
    assert not any(name.startswith("pooler") for name in parts)
    layer, whole = "encoder.layer.2.", (0, 48)
    heads, inner = [(0, 16), (16, 32), (32, 48)], [(0, 33), (33, 65), (65, 97)]
    assert parts[layer + "attention.self.key.weight"] == [(rows, whole) for rows in heads]
    assert parts[layer + "attention.self.key.bias"] == [(rows,) for rows in heads]
    assert parts[layer + "attention.output.dense.weight"] == [(whole, rows) for rows in heads]
    assert parts[layer + "attention.output.dense.bias"] == [(whole,)] * 3
    assert parts[layer + "intermediate.dense.bias"] == [(rows,) for rows in inner]
    assert parts[layer + "output.dense.weight"] == [(whole, rows) for rows in inner]
    words = [((0, 71), whole), ((71, 141), whole), ((141, 211), whole)]
    assert parts["embeddings.word_embeddings.weight"] == sorted(words, key=str)


def test_a_folder_of_hugging_face_is_read_by_its_names(tmp_path: Path) -> None:
    config = replace(CONFIG, dtype="bf16")
    weights = random_weights(config)
    # An integer table, which no operator reads.
    besides = {"embeddings.position_ids": np.arange(50)[None]}
    folder = save_model(tmp_path / "model", {**weights, **besides}, torch_dtype="bfloat16")
    assert read_bert_config(folder) == config
    with running(config, folder, device="numpy") as (bert, _):
        used = {name for name in weights if not name.startswith("pooler")}
        state = bert.state_dict()
        assert state.keys() == used
        assert all(np.array_equal(state[name], weights[name]) for name in used)


def test_a_folder_that_lacks_a_weight_or_has_another_is_refused(tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    missing = weights.pop("encoder.layer.1.output.LayerNorm.bias")
    folder = save_model(tmp_path / "model", {**weights, "classifier.bias": missing})
    with (
        pytest.raises(ark.StateDictError, match=r"layer\.1\.output\.LayerNorm\.bias") as caught,
        running(weights=folder, device="numpy"),
    ):
        pass
    assert "unexpected: classifier.bias\n" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "found 0 rows, wanted 1 to 2"),
        ([[1]] * 3, "found 3 rows, wanted 1 to 2"),
        ([[1], []], "row 1 has 0 tokens, wanted 1 to 40"),
        ([[1] * 41], "row 0 has 41 tokens, wanted 1 to 40; cut the text"),
        ([[1], [5, 211]], "row 1 has the token 211, wanted 0 to 210"),
        ([[-1]], "row 0 has the token -1"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: list[list[int]], text: str) -> None:
    with (
        running(device="numpy", batch=2) as (bert, _),
        pytest.raises(ValueError, match=f"set_tokens: {text}"),
    ):
        bert.set_tokens(rows)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"batch": 0}, "batch is 0; it must be 1 or more"),
        ({"length": 51}, "length is 51; it must be 1 to 50"),
        ({"length": 0}, "length is 0"),
    ],
)
def test_sizes_out_of_range_are_refused(arguments: dict[str, int], text: str) -> None:
    with pytest.raises(ValueError, match=f"Bert: {text}"):
        Bert(CONFIG, graph=ark.Model(), **arguments)  # type: ignore[arg-type]  # all are integers


def test_the_whole_length_is_there_if_none_is_given() -> None:
    bert = Bert(CONFIG, graph=ark.Model())
    assert bert.tokens.shape == (8, CONFIG.max_position_embeddings)
    assert [*bert.methods] == [32, 50]
