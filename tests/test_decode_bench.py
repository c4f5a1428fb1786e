"""The benchmark of a language model, with a tiny one."""

from pathlib import Path

from ark_dist.bench.decode import CONTEXT, decode
from ark_dist.bench.rows import Wanted
from ark_dist.bench.timing import Effort
from ark_dist.convert.folder import convert_gguf
from tests.gguf_models import changed, write_gguf

QUICK = Effort(rounds=1, round_s=1e-3)


def test_each_case_has_a_row_with_its_floor(tmp_path: Path) -> None:
    llama = changed(context=CONTEXT)
    convert_gguf(write_gguf(tmp_path / "a.gguf", llama), tmp_path / "model", dtype="bf16")
    rows = decode(effort=QUICK, folder=tmp_path / "model")
    found = [(row.bench, row.case, row.dtype, row.ranks, row.workers, row.unit) for row in rows]
    assert found == [
        ("decode", "smollm2-135m", "bf16", 1, 2, "tokens/s"),
        ("decode", "smollm2-135m batch 8", "bf16", 1, 2, "tokens/s"),
        ("decode", "smollm2-135m prefill 512", "bf16", 1, 2, "ms"),
    ]
    assert all(row.ours > 0 and row.floor and row.of_floor for row in rows)
    assert all((row.peer is None) == (row.ratio is None) for row in rows)


def test_nothing_is_fetched_where_no_case_is_wanted() -> None:
    assert decode(Wanted(case="no such case")) == []
    assert decode(Wanted(dtype="fp32")) == []
