"""Texts from a folder with a tiny random Llama: batches, streams, stops, and the demo."""

import ctypes
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ark_dist as ark
from ark_dist import world
from ark_dist.comm.communicator import Communicator
from ark_dist.convert.gguf_folder import convert_gguf
from ark_dist.generation import Generation, LanguageModel, generate
from ark_dist.models.llama import NO_TOKEN
from tests.gguf_models import write_gguf
from tests.rank_threads import on_ranks
from tests.test_cli import run

PROMPTS = ["hello w", "12 ab hello"]
HOT: dict[str, Any] = {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "seed": 7}
COUNT = 12
# How long Python is blocked at a time, and how often at most: on a busy machine threads wait.
BLOCK_US, MOST_BLOCKS = 200_000, 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    convert_gguf(write_gguf(root / "tiny.gguf"), root / "tiny", dtype="fp32")
    return root / "tiny"


@pytest.fixture(scope="module", params=["cpu", "numpy"])
def model(request: pytest.FixtureRequest, folder: Path) -> Iterator[LanguageModel]:
    with LanguageModel(folder, batch=3, context=48, device=request.param, workers=2) as made:
        yield made


def ids(found: list[Generation]) -> list[tuple[int, ...]]:
    return [each.token_ids for each in found]


def test_rows_of_a_batch_are_what_they_are_alone(model: LanguageModel) -> None:
    both = model.generate(PROMPTS, max_new_tokens=COUNT)
    alone = [model.generate(prompt, max_new_tokens=COUNT)[0] for prompt in PROMPTS]
    assert both == alone
    for each, prompt in zip(both, PROMPTS, strict=True):
        assert each.prompt_ids == tuple(model.tokenizer.encode(prompt))
        assert each.text == model.tokenizer.decode(each.token_ids)
        assert each.is_stopped == (each.token_ids[-1] in model.stop_ids)
        assert len(each.token_ids) == COUNT or each.is_stopped


def test_a_prompt_is_a_text_its_tokens_or_a_chat(model: LanguageModel) -> None:
    (text,) = model.generate(PROMPTS[0], max_new_tokens=3)
    (tokens,) = model.generate(model.tokenizer.encode(PROMPTS[0]), max_new_tokens=3)
    assert text == tokens
    chat = [{"role": "user", "content": "hello"}]
    (answer,) = model.generate(chat, max_new_tokens=3)
    assert list(answer.prompt_ids) == model.tokenizer.encode_chat(chat)
    assert model.generate([chat, chat], max_new_tokens=3)[1].prompt_ids == answer.prompt_ids


def test_a_seed_gives_the_same_texts_again(model: LanguageModel) -> None:
    first = model.generate(PROMPTS, max_new_tokens=COUNT, **HOT)
    assert model.generate(PROMPTS, max_new_tokens=COUNT, **HOT) == first
    assert model.generate(PROMPTS, max_new_tokens=COUNT, **{**HOT, "seed": 8}) != first


def test_pieces_of_a_stream_make_the_text(model: LanguageModel) -> None:
    pieces: dict[int, str] = {0: "", 1: ""}

    def add(row: int, text: str) -> None:
        assert text
        pieces[row] += text

    found = model.generate(PROMPTS, max_new_tokens=COUNT, on_text=add, **HOT)
    assert list(pieces.values()) == [each.text for each in found]


def test_a_generation_is_one_command_after_its_prompts(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[tuple[str, int]] = []
    run_it = model.executor.run

    def count(iterations: int, *, method: str, scalars: dict[str, float]) -> None:
        commands.append((method, iterations))
        run_it(iterations, method=method, scalars=scalars)

    monkeypatch.setattr(model.executor, "run", count)
    model.generate(PROMPTS, max_new_tokens=COUNT, on_text=lambda row, text: None)
    assert commands == [("prefill", 1), ("decode", COUNT)]


def test_the_kernel_writes_while_python_is_blocked(folder: Path) -> None:
    python = ctypes.PyDLL(None)  # whose functions are called without giving other threads a turn
    with LanguageModel(folder, context=48, device="cpu", workers=2) as model:
        (want,) = model.generate(PROMPTS[0], max_new_tokens=COUNT)
        llama, prompt = model.llama, model.tokenizer.encode(PROMPTS[0])
        llama.tokens.from_numpy(np.full(llama.tokens.shape, NO_TOKEN, np.int32))
        model.executor.run(llama.set_prompts([prompt]), method="prefill", scalars={"cursor": 0})
        model.executor.run(COUNT, method="decode")
        written: list[int] = []
        for _ in range(MOST_BLOCKS):
            python.usleep(BLOCK_US)
            line = model.executor.peek(llama.tokens)[0, len(prompt) :].tolist()
            written = line[: line.index(NO_TOKEN)]
            if len(written) >= len(want.token_ids):
                break
        assert written[: len(want.token_ids)] == list(want.token_ids)
        model.executor.wait()


def test_a_text_ends_with_its_first_stop_token(folder: Path) -> None:
    with LanguageModel(folder, context=48, device="cpu", workers=1) as model:
        (free,) = model.generate(PROMPTS[0], max_new_tokens=COUNT, **HOT)
    places = {token: i for i, token in reversed(list(enumerate(free.token_ids)))}
    token, at = max(places.items(), key=lambda item: item[1])
    other = folder.parent / "stops"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    for name in ("config.json", "generation_config.json"):
        table = json.loads((other / name).read_text())
        (other / name).write_text(json.dumps({**table, "eos_token_id": token}))
    told: list[str] = []
    with LanguageModel(other, context=48, device="cpu", workers=1) as model:
        (stopped,) = model.generate(
            PROMPTS[0], max_new_tokens=64, on_text=lambda row, text: told.append(text), **HOT
        )
    assert stopped.token_ids == free.token_ids[: at + 1]
    assert stopped.is_stopped
    assert "".join(told) == stopped.text


def test_more_stop_tokens_than_there_is_room_for_are_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = {"eos_token_id": list(range(3, 14))}
    (tmp_path / "generation_config.json").write_text(json.dumps(table))
    with pytest.raises(ark.ModelConfigError, match=r"found 12 stop tokens, and room for 8; name"):
        LanguageModel(tmp_path, context=48, device="cpu", workers=1)


def test_a_model_writes_again_after_an_error_in_on_text(folder: Path) -> None:
    def fail(row: int, text: str) -> None:
        raise RuntimeError(text)

    with LanguageModel(folder, context=48, device="cpu", workers=1) as model:
        want = model.generate(PROMPTS[0], max_new_tokens=COUNT)
        with pytest.raises(RuntimeError):
            model.generate(PROMPTS[0], max_new_tokens=COUNT, on_text=fail)
        assert model.generate(PROMPTS[0], max_new_tokens=COUNT) == want


def test_ranks_write_what_one_writes(folder: Path) -> None:
    options: dict[str, Any] = {
        "context": 48,
        "device": "cpu",
        "workers": 1,
        "max_new_tokens": COUNT,
    }
    want = generate(folder, PROMPTS, **options)

    def work(communicator: Communicator) -> tuple[list[Generation], str]:
        told: list[str] = []
        with world.use(communicator):
            found = generate(
                folder, PROMPTS, **options,
                on_text=lambda row, text: told.append(text) if row == 0 else None,
            )  # fmt: skip
        return found, "".join(told)

    assert on_ranks(2, work) == [(want, want[0].text)] * 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_folder_of_hugging_faces_cache_is_used_in_place(
    folder: Path, tmp_path: Path, ranks: int
) -> None:
    snapshot, blobs = tmp_path / "snapshots" / "1f2e", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")

    def texts(place: Path) -> list[str]:
        found = generate(place, "Once", max_new_tokens=8, device="cpu", workers=1)
        return [each.text for each in found]

    def work(communicator: Communicator) -> list[str]:
        with world.use(communicator):
            return texts(snapshot)

    wanted = texts(folder)
    assert all(found == wanted for found in on_ranks(ranks, work))


def test_a_link_to_weights_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(folder, place)
    (weights,) = place.glob("*.safetensors")
    weights.rename(tmp_path / "elsewhere.safetensors")
    weights.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ark.CheckpointError, match=r"found a link to .*elsewhere\.safetensors"):
        generate(place, "Once", device="cpu")


@pytest.mark.parametrize(
    ("of_rank", "text"),
    [
        (({"prompts": "hello w"}, {"prompts": "hello b"}), r"prompts_id=\d+.*prompts_id=\d+"),
        (({"prompts": "a", "seed": 1}, {"prompts": "a", "seed": 2}), r"seed=\d.*seed=\d"),
    ],
)
def test_other_arguments_on_one_rank_are_an_error(
    folder: Path, of_rank: tuple[dict[str, Any], ...], text: str
) -> None:
    def work(communicator: Communicator) -> None:
        with (
            world.use(communicator),
            pytest.raises(ark.CommMismatch, match=f"(?s){text}.*all ranks must run the same"),
        ):
            generate(
                folder, **of_rank[communicator.rank], context=48, device="cpu", workers=1,
                max_new_tokens=2,
            )  # fmt: skip

    on_ranks(2, work)


@pytest.mark.parametrize(
    ("prompts", "options", "text"),
    [
        ([], {}, "found 0 prompts, wanted 1 to 3, the batch"),
        (["a"] * 4, {}, "found 4 prompts, wanted 1 to 3, the batch"),
        ("", {}, "prompt 0 has no tokens; give it a text"),
        ([100_000], {}, "row 0 has the token 100000, wanted 0 to "),
        ("hello " * 60, {}, "tokens, and the context 48; shorten the prompt"),
        ("a", {"max_new_tokens": 0}, "max_new_tokens is 0; it must be 1 or more"),
        ("a", {"temperature": -1.0}, "temperature is -1.0; it must be 0 or more"),
        ("a", {"top_k": -1}, "top_k is -1; it must be 0, for all tokens, or more"),
        ("a", {"top_p": 0.0}, "top_p is 0.0; it must be above 0, and 1 at most"),
    ],
)
def test_bad_requests_are_named(
    model: LanguageModel, prompts: list[str], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=r"generate|set_prompts") as error:
        model.generate(prompts, **options)
    assert text in str(error.value)
    assert model.generate("hello", max_new_tokens=1)


@pytest.mark.parametrize("prompt", [None, 5, 1.5, b"a", [None], [[1.5]], [1, "a"], ["a", 1], {}])
def test_what_is_no_prompt_is_named(model: LanguageModel, prompt: object) -> None:
    with pytest.raises(TypeError, match=r"generate: a prompt is .*; it must be a text, a chat"):
        model.generate(prompt)  # type: ignore[arg-type]  # what it is about


def test_arrays_of_tokens_are_prompts(model: LanguageModel) -> None:
    tokens = np.array([[70, 71, 72], [73, 74, 75]])
    both = model.generate(tokens, max_new_tokens=2)  # type: ignore[arg-type]  # also taken
    assert [each.prompt_ids for each in both] == [(70, 71, 72), (73, 74, 75)]
    one = model.generate(tokens[0], max_new_tokens=2)
    assert one == both[:1]


def test_what_is_not_in_this_process_cannot_be_peeked(folder: Path) -> None:
    graph = ark.Model("peek")
    x = graph.tensor((4,), name="x")
    y = graph.add(x, x)
    with ark.Executor(model=graph, device="null") as exe:
        exe.compile()
        assert not exe.can_peek(y)
        with pytest.raises(ValueError, match=r"is not all in this process's memory"):
            exe.peek(y)
    with ark.Executor(model=graph, device="cpu", workers=1) as exe:
        exe.compile()
        x.from_numpy(np.ones(4, np.float32))
        exe.launch()
        exe.run(1)
        exe.wait()
        assert exe.peek(x).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_the_demo_answers_with_any_folder(folder: Path, ranks: str) -> None:
    done = run(
        "demo", "hello", "--model", str(folder), "--ranks", ranks, "--max-new-tokens", "5",
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["ranks"] == int(ranks)
    assert row["device"] == "cpu"
    assert 1 <= len(row["token_ids"]) <= 5
    assert {"text", "tokens_per_s", "load_s", "compile_s", "prefill_ms"} <= set(row)


@pytest.mark.long
@pytest.mark.real
def test_the_demo_knows_the_capital_of_france_on_two_ranks() -> None:
    done = run("demo", "--ranks", "2")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
