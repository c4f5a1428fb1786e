"""The benchmark of a language model, with a tiny one; peers answer where they are installed."""

import json
from pathlib import Path

import numpy as np
import pytest

from ark_dist.bench import decode as bench
from ark_dist.bench.decode import decode
from ark_dist.bench.llama_cpp_peer import LlamaCpp
from ark_dist.bench.rows import Wanted
from ark_dist.bench.text_peer import CONTEXT, Floats, Prompts, TextPeer, answer_questions, gaps
from ark_dist.bench.timing import Effort
from ark_dist.bench.transformers_peer import Transformers
from ark_dist.convert.gguf_folder import convert_gguf
from ark_dist.core.errors import ConfigError
from tests.gguf_models import changed, weights, write_gguf

QUICK = Effort(rounds=1, round_s=1e-3)
# Random weights of this size make activations that any program rounds alike.
SCALE = 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama = changed(context=CONTEXT)
    place = tmp_path_factory.mktemp("decode")
    small = {name: array * SCALE for name, array in weights(llama).items()}
    convert_gguf(write_gguf(place / "a.gguf", llama, small), place / "model", dtype="bf16")
    return place / "model"


def test_each_case_has_a_row_with_its_floor(folder: Path, tmp_path: Path) -> None:
    narrow = tmp_path / "narrow"
    convert_gguf(folder.parent / "a.gguf", narrow, dtype="int8")
    rows = decode(effort=QUICK, folder_of={"bf16": folder, "int8": narrow}.__getitem__)
    found = [(row.bench, row.case, row.dtype, row.ranks, row.workers, row.unit) for row in rows]
    assert list(dict.fromkeys(found)) == [
        ("decode", "smollm2-135m", "bf16", 1, 2, "tokens/s"),
        ("decode", "smollm2-135m", "bf16", 2, 1, "tokens/s"),
        ("decode", "smollm2-135m", "int8", 1, 2, "tokens/s"),
        ("decode", "smollm2-135m batch 8", "bf16", 1, 2, "tokens/s"),
        ("decode", "smollm2-135m prefill 512", "bf16", 1, 2, "ms"),
    ]
    assert all(row.ours > 0 and row.floor and row.of_floor for row in rows)
    assert all((row.peer is None) == (row.ratio is None) for row in rows)
    ours = [(row.ranks, row.case[13:]) for row in rows if row.peer_name == bench.ONE_ROW.title]
    assert ours == [(2, ""), (1, ""), (1, "batch 8")]


def test_weights_of_another_dtype_are_one_more_case(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tmp_path / "wide"
    convert_gguf(folder.parent / "a.gguf", wide, dtype="fp32")
    more = bench.Case(bench.MODEL, dtype="fp32", over=bench.ONE_ROW)
    monkeypatch.setattr(bench, "CASES", (bench.ONE_ROW, more))
    monkeypatch.setattr(bench, "PEERS", {})
    rows = decode(effort=QUICK, folder_of={"bf16": folder, "fp32": wide}.__getitem__)
    assert [(row.dtype, row.peer_name) for row in rows] == [
        ("bf16", None),
        ("fp32", bench.ONE_ROW.title),
    ]


def test_without_mpirun_rows_of_several_ranks_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "find_mpirun", lambda: None)
    monkeypatch.setattr(bench, "CASES", (bench.CASES[1],))
    assert decode() == []
    assert "decode: there is no mpirun" in capsys.readouterr().err


@pytest.mark.parametrize("peer", [LlamaCpp, Transformers])
def test_a_peer_is_left_out_for_weights_that_it_is_not_compared_in(
    peer: type[LlamaCpp] | type[Transformers],
) -> None:
    with pytest.raises(ConfigError, match=r"it is compared in .*, not in int8"):
        peer("folder", "int8", 1)


def test_nothing_is_fetched_where_no_case_is_wanted() -> None:
    assert decode(Wanted(case="no such case")) == []
    assert decode(Wanted(dtype="fp32")) == []


def test_ratios_are_medians_of_each_turn_and_the_first_turn_does_not_count() -> None:
    eight = bench.Case("eight", batch=8, over=bench.ONE_ROW)
    times = {
        bench.ONE_ROW: bench._Times([9.0, 1.0, 2.0, 3.0], {}, [9.0, 0.5, 0.5, 0.5]),
        eight: bench._Times(
            [9.0, 2.0, 2.0, 2.0], {"x": [9.0, 6.0, 2.0, 1.0]}, [9.0, 1.0, 1.0, 1.0]
        ),
    }
    peer, over = bench._rows(eight, times, {"x": "x 1.0"})
    assert (peer.peer_name, peer.ours, peer.peer) == ("x 1.0", 8 * 64 / 2, 8 * 64 / 2)
    assert (peer.ratio, peer.of_floor) == (1.0, 0.5)
    assert (over.peer, over.ratio) == (64 / 2, 8.0)


class _Parrot(TextPeer):
    """Thinks that each token follows itself."""

    name = "parrot"

    def write(self, prompts: Prompts, count: int) -> None:
        pass

    def read(self, prompts: Prompts) -> None:
        pass

    def logits(self, text: list[int]) -> Floats:  # type: ignore[override]  # a list is enough
        return np.eye(4, dtype=np.float32)[text] * 10


def test_how_far_a_token_is_from_the_likeliest() -> None:
    text = [1, 1, 1, 2]
    assert gaps(_Parrot().logits(text), text, 2) == [0.0, 1.0]


class _Told:
    """A peer that says how far our tokens are from its own."""

    name = "told"

    def __init__(self, *found: float) -> None:
        self._found = list(found)

    def ask(self, question: dict[str, object]) -> dict[str, object]:
        assert question == {"text": [5, 6, 7, 8], "start": 2}
        return {"gaps": self._found}


def test_a_peer_that_computes_another_model_is_never_timed() -> None:
    bench.check_text(_Told(0.0, 0.01), [5, 6], [7, 8])  # type: ignore[arg-type]  # it can be asked
    with pytest.raises(ArithmeticError, match=r"told: our token 1 is 30\.0% of the largest logit"):
        bench.check_text(_Told(0.0, 0.3), [5, 6], [7, 8])  # type: ignore[arg-type]  # as above


def test_a_peer_without_its_package_says_what_is_missing(capfd: pytest.CaptureFixture[str]) -> None:
    def load() -> TextPeer:
        raise ConfigError("no such package")

    answer_questions(load)
    assert json.loads(capfd.readouterr().out) == {"name": None, "problem": "no such package"}
