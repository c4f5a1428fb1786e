"""A Llama's folder becomes a GGUF file for llama.cpp, and its tensors come back as they were."""

from pathlib import Path

import numpy as np
import pytest

from ark_dist.bench.llama_gguf import write_llama_gguf
from ark_dist.checkpoint.reader import open_checkpoint, read_all
from ark_dist.convert.gguf_file import open_gguf
from ark_dist.convert.gguf_folder import convert_gguf
from ark_dist.convert.llama import check_tensors, read_sizes, read_tensor, unweave, weave
from ark_dist.core.dtype import DTYPES
from tests.gguf_models import TinyLlama, changed, write_gguf

HEADS_OF_THEIR_OWN_SIZE = changed(
    hidden=48, heads=3, kv_heads=1, is_tied=False, theta=10_000.0, context=64
)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("llama", [changed(), HEADS_OF_THEIR_OWN_SIZE], ids=["tied", "untied"])
def test_a_folder_written_as_gguf_comes_back_the_same(
    tmp_path: Path, llama: TinyLlama, dtype: str
) -> None:
    folder, path = tmp_path / "model", tmp_path / "back.gguf"
    convert_gguf(write_gguf(tmp_path / "a.gguf", llama), folder, dtype=dtype)
    write_llama_gguf(folder, path)
    with open_checkpoint(folder) as checkpoint:
        wanted = read_all(checkpoint)
    with open_gguf(path) as gguf, open_gguf(tmp_path / "a.gguf") as first:
        assert gguf.metadata["tokenizer.ggml.model"] == "none"
        assert gguf.metadata["llama.vocab_size"] == len(llama.tokens)
        sizes = read_sizes(gguf, len(llama.tokens))
        assert sizes == read_sizes(first, len(llama.tokens))
        sources = check_tensors(gguf, sizes)
        assert sources.keys() == wanted.keys()
        for name, source in sources.items():
            kind = "F32" if len(source.shape) == 1 else dtype.upper().replace("FP", "F")
            assert gguf.tensors[source.name].kind.name == kind
            found = read_tensor(gguf, source, DTYPES[dtype].numpy)
            assert found.tobytes() == wanted[name].tobytes(), name


def test_rows_of_halves_and_of_neighbours_are_each_others_inverse() -> None:
    rows = np.arange(2 * 4 * 3).reshape(8, 3)
    assert weave(rows, 2)[:, 0].tolist() == [0, 6, 3, 9, 12, 18, 15, 21]
    np.testing.assert_array_equal(unweave(weave(rows, 2), 2), rows)
