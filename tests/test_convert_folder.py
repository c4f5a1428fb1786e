"""A Llama's folder becomes one of another dtype: tensors, configuration, texts, whole or not."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import ark_dist as ark
from ark_dist.checkpoint.saver import save_checkpoint
from ark_dist.checkpoint.shards import Layout
from ark_dist.convert import checkpoint
from ark_dist.convert.checkpoint import COPIED, convert_folder
from ark_dist.convert.gguf_folder import convert_gguf
from ark_dist.convert.int8 import quantize
from ark_dist.convert.target_folder import Converted
from ark_dist.core.errors import CheckpointError, ModelConfigError
from ark_dist.core.op import Array
from ark_dist.launch.exit_codes import BAD_CONFIG, BAD_FILE
from ark_dist.models.llama_config import read_llama_config
from ark_dist.models.quantization import INT8
from tests.gguf_models import write_gguf
from tests.llama_models import CONFIG, TABLE, random_weights, save_model
from tests.test_cli import run

NUMPY = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}
UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDINGS = "model.embed_tokens.weight"
NORM = "model.norm.weight"
SINGLE = "model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with fp32 weights and no tokenizer."""
    (tmp_path / "source").mkdir()
    return save_model(tmp_path / "source", random_weights(CONFIG))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with fp32 weights and a tokenizer."""
    root = tmp_path_factory.mktemp("model")
    convert_gguf(write_gguf(root / "tiny.gguf"), root / "tiny", dtype="fp32")
    return root / "tiny"


def converted(source: Path, dtype: str) -> Path:
    """Convert a folder to one beside it."""
    target = source.with_name(f"{source.name}-{dtype}")
    convert_folder(source, target, dtype=dtype)
    return target


def config_of(folder: Path) -> dict[str, object]:
    """What config.json holds."""
    table: dict[str, object] = json.loads((folder / "config.json").read_text())
    return table


def assert_equal(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """The same names, dtypes and values."""
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# --- what it becomes --------------------------------------------------------------------------


def test_matrices_become_int8_and_all_else_bf16(source: Path) -> None:
    wanted: dict[str, Array] = {}
    for name, array in random_weights(CONFIG).items():
        if array.ndim == 2:
            wanted[name], wanted[f"{name}_scale"] = quantize(array)
        else:
            wanted[name] = array.astype(ml_dtypes.bfloat16)
    folder = converted(source, "int8")
    assert_equal(ark.load(folder), wanted)
    assert read_llama_config(folder).is_int8 and read_llama_config(folder).dtype == "bf16"


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("before", NUMPY)
def test_floats_are_rounded_to_the_dtype_that_was_asked_for(
    tmp_path: Path, before: str, dtype: str
) -> None:
    weights = random_weights(replace(CONFIG, dtype=before))
    (tmp_path / "source").mkdir()
    folder = converted(save_model(tmp_path / "source", weights), dtype)
    wanted = {name: array.astype(NUMPY[dtype]) for name, array in weights.items()}
    assert_equal(ark.load(folder), wanted)
    assert read_llama_config(folder).dtype == dtype


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8"])
def test_a_folder_becomes_what_its_gguf_file_would(whole: Path, tmp_path: Path, dtype: str) -> None:
    convert_folder(whole, tmp_path / "found", dtype=dtype)
    convert_gguf(whole.parent / "tiny.gguf", tmp_path / "wanted", dtype=dtype)
    assert_equal(ark.load(tmp_path / "found"), ark.load(tmp_path / "wanted"))
    assert config_of(tmp_path / "found") == config_of(tmp_path / "wanted")


def test_int8_writes_what_it_stands_for(whole: Path, tmp_path: Path) -> None:
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    convert_folder(whole, packed, dtype="int8")
    convert_folder(whole, plain, dtype="fp32")
    weights = dict(ark.load(packed))
    scales = {name: weights.pop(name) for name in list(weights) if name.endswith("_scale")}
    for name, array in weights.items():
        scale = scales.get(f"{name}_scale", np.float32(1))
        weights[name] = array.astype(np.float32) * scale
    ark.save(weights, f"{plain}/")
    found = [
        ark.generate(folder, ["hello w", "12 ab"], max_new_tokens=12, context=48, device="cpu",
                     workers=2, dtype="fp32")
        for folder in (packed, plain)
    ]  # fmt: skip
    assert [each.token_ids for each in found[0]] == [each.token_ids for each in found[1]]


def test_a_large_tensor_is_read_in_pieces(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_PIECE_ELEMS", 150)  # 2 rows of 64
    monkeypatch.setattr("ark_dist.convert.int8._PIECE_ELEMS", 150)
    found = ark.load(converted(source, "int8"))
    monkeypatch.undo()
    units, scale = quantize(random_weights(CONFIG)[EMBEDDINGS])
    np.testing.assert_array_equal(found[EMBEDDINGS], units)
    np.testing.assert_array_equal(found[f"{EMBEDDINGS}_scale"], scale)


def test_tensors_without_floats_and_of_other_names_are_taken(source: Path) -> None:
    rng = np.random.default_rng()
    others: dict[str, Array] = {
        "steps": np.array(7, np.int64),
        "mask": rng.random((3, 5)) < 0.5,
        "counts.weight": np.arange(6, dtype=np.int32),
        "table": rng.random((4, 8)),
        "empty.weight": np.zeros((0, 8), np.float32),
    }
    ark.save({**random_weights(CONFIG), **others}, f"{source}/")
    found = ark.load(converted(source, "int8"))
    for name in ("steps", "mask", "counts.weight"):
        assert found[name].dtype == others[name].dtype
        np.testing.assert_array_equal(found[name], others[name])
    np.testing.assert_array_equal(found["table"], others["table"].astype(ml_dtypes.bfloat16))
    assert found["empty.weight"].shape == (0, 8) and found["empty.weight_scale"].shape == (0, 1)


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_tied_names_stay_tied(source: Path, dtype: str) -> None:
    weights = random_weights(CONFIG)
    save_checkpoint(
        source,
        {name: Layout(array.shape, array.dtype) for name, array in weights.items()},
        lambda name: weights[name],
        tied={"lm_head.weight": EMBEDDINGS},
    )
    with ark.open_checkpoint(converted(source, dtype)) as found:
        wanted = {"lm_head.weight": EMBEDDINGS}
        if dtype == "int8":
            wanted["lm_head.weight_scale"] = f"{EMBEDDINGS}_scale"
        assert found.tied == wanted


def test_several_files_become_files_of_a_given_size(source: Path, tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    layouts = {name: Layout(array.shape, array.dtype) for name, array in weights.items()}
    save_checkpoint(source, layouts, lambda name: weights[name], max_shard_bytes=100_000)
    target = tmp_path / "target"
    done = convert_folder(source, target, dtype="bf16", max_shard_bytes=50_000)
    size_bytes = sum(2 * array.size for array in weights.values())
    assert done == Converted(str(target), "bf16", len(weights), size_bytes)
    assert len(list(target.glob("*.safetensors"))) > 2
    assert ark.load(target).keys() == weights.keys()


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ({}, {"torch_dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        (
            {"torch_dtype": None, "dtype": "float16"},
            dict.fromkeys(checkpoint.DTYPE_KEYS, "bfloat16"),
        ),
    ],
    ids=["none", "torch_dtype", "dtype", "both"],
)
def test_the_configuration_is_kept_but_for_the_dtype(
    source: Path, before: dict[str, object], wanted: dict[str, object]
) -> None:
    rest = {key: value for key, value in TABLE.items() if key != "torch_dtype"}
    rest |= {"_name_or_path": "über", "pretraining_tp": 1, "rope_parameters": {"rope_theta": 5e5}}
    table = {**rest, **before, "quantization_config": None}
    (source / "config.json").write_text(json.dumps(table))
    assert config_of(converted(source, "bf16")) == {**rest, **wanted}
    assert config_of(converted(source, "int8")) == {**rest, **wanted, "quantization_config": INT8}


def test_the_tokenizer_is_copied_and_nothing_else(source: Path) -> None:
    texts = {name: f"of {name}\n".encode() for name in COPIED}
    for name, text in {**texts, "README.md": b"of no use", "pytorch_model.bin": b"old"}.items():
        (source / name).write_bytes(text)
    folder = converted(source, "fp16")
    for name, text in texts.items():
        assert (folder / name).read_bytes() == text
    weights = {path.name for path in folder.glob("model*")}
    assert {path.name for path in folder.iterdir()} == {*texts, *weights, "config.json"}
    left = {path.name for path in source.parent.iterdir()}
    assert left == {"source", "source-fp16"}


def test_a_folder_of_hugging_faces_cache_is_followed(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text("{}")
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "1f2e", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    convert_folder(snapshot, tmp_path / "target", dtype="fp32")
    assert_equal(ark.load(tmp_path / "target"), random_weights(CONFIG))
    assert not any(path.is_symlink() for path in (tmp_path / "target").iterdir())


# --- what is refused --------------------------------------------------------------------------

Damage = Callable[[Path], None]


def with_config(**changes: object) -> Damage:
    def change(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({**TABLE, **changes}))

    return change


def with_weights(**changes: Array) -> Damage:
    def change(folder: Path) -> None:
        ark.save({**random_weights(CONFIG), **changes}, f"{folder}/")

    return change


def without(pattern: str) -> Damage:
    def change(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return change


def with_link(name: str) -> Damage:
    """Put a file elsewhere, and a link in its place."""

    def change(folder: Path) -> None:
        path = next(iter(folder.glob(name)), folder / name)
        elsewhere = folder.with_name("elsewhere")
        if path.exists():
            path.rename(elsewhere)
        else:
            elsewhere.write_text("secret")
        path.symlink_to(elsewhere)

    return change


def with_loop(folder: Path) -> None:
    (folder / "merges.txt").symlink_to("merges.txt")


def cut_short(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def with_pointer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")


def changed_value(value: float) -> Damage:
    matrix = random_weights(CONFIG)[UP].astype(np.float64)
    matrix[3, 5] = value
    return with_weights(**{UP: matrix})


REFUSED: dict[str, tuple[Damage, str, str]] = {
    "no config": (without("config.json"), "bf16", "config.json: can't be read (No such file"),
    "architecture": (
        with_config(architectures=["BertModel"]),
        "bf16",
        "architectures is ['BertModel'], wanted one of LlamaForCausalLM",
    ),
    "other quantization": (
        with_config(quantization_config={"quant_method": "gptq"}),
        "bf16",
        "found a quantization_config of another format",
    ),
    "int8": (
        with_config(quantization_config=INT8),
        "bf16",
        "source: its matrices are int8 already; convert what it was made from",
    ),
    "int8 again": (
        with_config(quantization_config=INT8),
        "int8",
        "source: its matrices are int8 already; use it as it is",
    ),
    "scales": (
        with_weights(**{f"{UP}_scale": np.ones((96, 1), np.float32)}),
        "int8",
        f"found matrices that are no floats, or scales of some: '{UP}_scale'; convert a folder",
    ),
    "no floats": (
        with_weights(**{UP: np.ones((96, 64), np.int8)}),
        "int8",
        f"found matrices that are no floats, or scales of some: '{UP}'; convert a folder",
    ),
    "no weights": (without("model*"), "bf16", "wanted model.safetensors.index.json or model."),
    "no shard": (without("*.safetensors"), "bf16", "1 of 1 files are not there"),
    "cut short": (cut_short, "bf16", "damaged safetensors file of"),
    "pointer": (with_pointer, "bf16", "tokenizer.json: "),
    "link": (with_link("chat_template.jinja"), "bf16", "chat_template.jinja: found a link to "),
    "link of weights": (with_link("*.safetensors"), "bf16", ".safetensors: found a link to "),
    "link of config": (with_link("config.json"), "bf16", "config.json: found a link to "),
    "loop": (with_loop, "bf16", "merges.txt: can't be opened for reading"),
    "nan": (changed_value(np.nan), "bf16", f"tensor '{UP}' has values that are not finite; fetch"),
    "nan in int8": (changed_value(np.inf), "int8", "has values that are not finite; fetch it"),
    "fp16": (changed_value(7e4), "fp16", "up to 7e+04, too large for float16; convert it to bf16"),
    "bf16": (
        changed_value(3.4e38), "bf16", "up to 3.4e+38, too large for bfloat16; convert it to fp32",
    ),
    "fp32": (changed_value(1e200), "fp32", "has values up to 1e+200, too large for float32"),
    "fp32 in int8": (changed_value(1e200), "int8", "up to 1e+200, too large for float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_converted_is_one_sentence_and_leaves_nothing(
    source: Path, name: str
) -> None:
    damage, dtype, message = REFUSED[name]
    damage(source)
    before = {path.name for path in source.parent.iterdir()}
    with pytest.raises(CheckpointError) as caught:
        convert_folder(source, source.with_name("target"), dtype=dtype)
    assert message in str(caught.value)
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in source.parent.iterdir()} == before


def test_a_file_that_is_too_large_is_not_copied(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "MAX_TOKENIZER_BYTES", 10)
    (source / "vocab.json").write_text("12345678901")
    with pytest.raises(CheckpointError, match=r"vocab\.json: found 11 bytes, wanted at most 10"):
        convert_folder(source, source.with_name("target"))


def test_a_target_that_is_no_place_of_its_own_is_refused(source: Path) -> None:
    source.with_name("link").symlink_to(source)
    source.with_name("full").mkdir()
    source.with_name("full").joinpath("file").touch()
    source.with_name("other").symlink_to(source.with_name("full"))
    for target, message in (
        (source, "found the folder to convert, or one in it or around it; name another place"),
        (source / "int8", "found the folder to convert"),
        (source.with_name("link"), "found the folder to convert"),
        (source.with_name("link") / "int8", "found the folder to convert"),
        (source.parent, "found the folder to convert"),
        (source.with_name("full"), "found a folder that is not empty"),
        (source.with_name("other"), "a file or a symlink"),
        (source.with_name("no") / "folder", "there is no folder"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert_folder(source, target)
    assert config_of(source) == TABLE


def test_another_dtype_and_no_folder_are_refused(source: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'fp8'; it must be bf16, fp16, fp32, int8"):
        convert_folder(source, source.with_name("target"), dtype="fp8")
    with pytest.raises(ModelConfigError, match=r"config\.json: can't be read"):
        convert_folder(source.with_name("none"), source.with_name("target"))


# --- the command ------------------------------------------------------------------------------


def test_the_command_converts_a_folder_and_says_what(source: Path) -> None:
    target = source.with_name("target")
    done = run("convert", str(source), str(target), "--dtype", "int8", "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["path"], row["dtype"]) == (str(target), "int8")
    assert row["tensors"] == len(random_weights(CONFIG))
    assert ark.load(target)[UP].dtype == np.int8
    again = run("convert", str(target), f"{target}-2", "--dtype", "bf16")
    assert again.returncode == BAD_FILE
    assert "its matrices are int8 already; convert what it was made from" in again.stderr


@pytest.mark.parametrize(
    ("place", "target", "dtype", "code", "message"),
    [
        ("none", "target", "bf16", BAD_CONFIG, "none is not there; name a folder as Hugging Face"),
        ("empty", "target", "bf16", BAD_FILE, "config.json: can't be read (No such file or direct"),
        ("source", "source", "bf16", BAD_FILE, "source: found the folder to convert, or one in it"),
        ("source", "source/int8", "int8", BAD_FILE, "int8: found the folder to convert, or one in"),
        ("source", "full", "int8", BAD_FILE, "full: found a folder that is not empty; remove what"),
        ("source", "target", "int3", BAD_CONFIG, "dtype is 'int3'; it must be bf16, fp16, fp32"),
    ],
)
def test_the_command_ends_with_a_sentence_and_the_code_of_its_kind(
    source: Path, place: str, target: str, dtype: str, code: int, message: str
) -> None:
    root = source.parent
    (root / "empty").mkdir()
    (root / "full").mkdir()
    (root / "full" / "file").touch()
    done = run("convert", str(root / place), str(root / target), "--dtype", dtype)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
