"""What is wrong with a model's folder, or with what is asked of it, is one sentence and a code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import save_file

import ark_dist as ark
from ark_dist.convert.gguf_folder import convert_gguf
from ark_dist.core.op import Array
from ark_dist.launch.exit_codes import BAD_CONFIG, BAD_FILE
from tests.gguf_models import write_gguf
from tests.mpi import ROOT, run_mpi
from tests.test_cli import run

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder with an index and two files."""
    root = tmp_path_factory.mktemp("model")
    convert_gguf(write_gguf(root / "tiny.gguf"), root / "tiny", dtype="fp32")
    write_weights(root / "tiny", dict(ark.load(root / "tiny")))
    return root / "tiny"


def write_weights(folder: Path, weights: dict[str, Array]) -> None:
    for old in folder.glob("model*"):
        old.unlink()
    names = sorted(weights)
    parts = names[: len(names) // 2], names[len(names) // 2 :]
    for shard, part in zip(SHARDS, parts, strict=True):
        save_file({name: weights[name] for name in part}, folder / shard)
    places = {name: shard for shard, part in zip(SHARDS, parts, strict=True) for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def with_text(name: str, text: str) -> Damage:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


def with_config(**changes: object) -> Damage:
    def change(folder: Path) -> None:
        table = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**table, **changes}))

    return change


def cut_short(folder: Path) -> None:
    path = folder / SHARDS[0]
    path.write_bytes(path.read_bytes()[:-100])


def no_norm(folder: Path) -> None:
    weights = dict(ark.load(folder))
    del weights[NORM]
    write_weights(folder, weights)


DAMAGE: dict[str, tuple[Damage, str]] = {
    "no config": (without("config.json"), "config.json: can't be read (No such file or directory)"),
    "broken config": (with_text("config.json", '{"hidden'), "config.json: damaged JSON of 8 bytes"),
    "architecture": (
        with_config(architectures=["GPT2LMHeadModel"]),
        "architectures is ['GPT2LMHeadModel'], wanted one of LlamaForCausalLM; other models are",
    ),
    "no tokenizer": (without("tokenizer.json"), "found no tokenizer.json, wanted a model's folder"),
    "broken tokenizer": (with_text("tokenizer.json", "{}"), "tokenizer.json: damaged: "),
    "no shard": (without(SHARDS[1]), f"1 of 2 files are not there: '{SHARDS[1]}'; fetch them"),
    "no index": (without(INDEX), f"wanted {INDEX} or model.safetensors in it"),
    "cut short": (cut_short, f"{SHARDS[0]}: damaged safetensors file of "),
    "no tensor": (no_norm, f"not those of the model in its config.json; load_state_dict: nothing "
                  f"was loaded into Llama:\n  missing: {NORM}\n"),
    "other sizes": (with_config(intermediate_size=128), "gate_proj.weight is (128, 64), found"),
}  # fmt: skip


@pytest.fixture
def folder(request: pytest.FixtureRequest, whole: Path, tmp_path: Path) -> tuple[Path, str]:
    """A damaged folder, and what is said of it."""
    damage, text = DAMAGE[request.param]
    shutil.copytree(whole, tmp_path / "model")
    damage(tmp_path / "model")
    return tmp_path / "model", text


@pytest.mark.parametrize("folder", DAMAGE, indirect=True)
def test_a_folder_that_is_damaged_or_not_whole_is_one_sentence(folder: tuple[Path, str]) -> None:
    path, text = folder
    arguments = "demo", "hello", "--model", str(path), "--context", "40"
    done = run(*arguments, ARK_DIST_LOG="WARNING")
    assert done.returncode == BAD_FILE, done
    assert done.stderr.startswith(f"ark-dist: {path}")
    assert text in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("folder", ["no config", "no shard", "cut short"], indirect=True)
def test_no_rank_is_started_for_a_folder_that_is_damaged(folder: tuple[Path, str]) -> None:
    path, text = folder
    done = run("demo", "hello", "--model", str(path), "--ranks", "2")
    assert done.returncode == BAD_FILE, done
    assert done.stderr.startswith(f"ark-dist: {path}")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("folder", ["no tensor", "no tokenizer"], indirect=True)
def test_under_a_launcher_all_ranks_end_with_the_sentence(folder: tuple[Path, str]) -> None:
    path, text = folder
    program = ROOT / "examples" / "generate.py"
    done = run_mpi(2, program, "hello", "--model", str(path), by="ark-dist", timeout_s=60)
    assert done.returncode == BAD_FILE, done
    assert text in done.stderr.rpartition("ark-dist run: exit code 77")[2]


@pytest.mark.parametrize("ranks", ["1", "2"])
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("hello " * 60,), "tokens, and the context 40; shorten the prompt, or make the model"),
        (("a", "--context", "200"), "Llama: context is 200; it must be 1 to 128, which the model"),
        (("a", "--dtype", "int8"), "Llama: dtype is 'int8'; it must be one of fp32, fp16, bf16"),
    ],
    ids=["prompt", "context", "dtype"],
)
def test_what_can_not_be_done_is_one_code_on_one_rank_or_two(
    whole: Path, ranks: str, words: tuple[str, ...], text: str
) -> None:
    done = run("demo", "--model", str(whole), "--context", "40", "--ranks", ranks, *words)
    assert done.returncode == BAD_CONFIG, done
    assert text in done.stderr


def test_what_is_no_folder_is_named(whole: Path) -> None:
    done = run("demo", "--model", "/no/such/model")
    assert done.returncode == BAD_CONFIG
    assert (
        done.stderr == "ark-dist: /no/such/model is not a folder; name one as Hugging Face has it\n"
    )
    gguf = whole.parent / "tiny.gguf"
    done = run("demo", "--model", str(gguf))
    assert done.returncode == BAD_CONFIG
    assert f"`ark-dist convert {gguf} {whole}` makes one" in done.stderr
