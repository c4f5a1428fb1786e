"""Checks that pickles give arrays or an error, and never run what they name."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ark_dist import safe_pickle
from ark_dist.core.errors import CheckpointError
from ark_dist.safe_pickle import LEGACY_MAGIC
from ark_dist.safetensors_file import Array
from ark_dist.serialize import load

FLOATS = np.arange(6, dtype=np.float32)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def long_text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def tensor(
    key: str = "0",
    *,
    kind: str = "torch\nFloatStorage",
    size: int = 6,
    offset: int = 0,
    shape: tuple[int, ...] = (2, 3),
    strides: tuple[int, ...] = (3, 1),
    is_legacy: bool = False,
) -> bytes:
    """Return the opcodes that torch writes for one tensor."""
    pid = b"(" + text("storage") + b"c" + kind.encode() + b"\n" + text(key) + text("cpu")
    pid += number(size) + (b"N" if is_legacy else b"") + b"tQ"
    sizes = b"(" + b"".join(map(number, shape)) + b"t(" + b"".join(map(number, strides)) + b"t"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + number(offset) + sizes + hooks + b"tR"


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def table(**values: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(text(k) + v for k, v in values.items()) + b"u."


def torch_zip(data: bytes, *, order: bytes = b"little", **storages: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", data)
        archive.writestr("model/byteorder", order)
        for key, storage in storages.items():
            archive.writestr(f"model/data/{key.removeprefix('k')}", storage)
    return stream.getvalue()


def torch_legacy(data: bytes, keys: list[str], storages: bytes, *, is_little: bool = True) -> bytes:
    system = {"protocol_version": 1001, "little_endian": is_little, "type_sizes": {"int": 4}}
    head = b"".join(pickle.dumps(part, 2) for part in (LEGACY_MAGIC, 1001, system))
    return head + data + pickle.dumps(keys, 2) + storages


def load_bytes(tmp_path: Path, data: bytes) -> dict[str, Array]:
    (tmp_path / "x.pt").write_bytes(data)
    return load(tmp_path / "x.pt")


def refuse(tmp_path: Path, data: bytes, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        load_bytes(tmp_path, data)
    assert "x.pt: " in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_torch_zip_is_read_and_ties_are_kept(tmp_path: Path) -> None:
    data = table(
        a=tensor(),
        tie=tensor(),
        t=tensor(shape=(3, 2), strides=(1, 3)),
        row=tensor(offset=3, shape=(3,), strides=(1,)),
        scalar=tensor(offset=5, shape=(), strides=()),
        none=tensor("1", size=0, shape=(0, 3)),
        b=tensor("2", kind="torch\nBFloat16Storage", size=1, shape=(1,), strides=(1,)),
        p=b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88Nt" + b"R",
    )
    got = load_bytes(tmp_path, torch_zip(data, k0=FLOATS.tobytes(), k1=b"", k2=b"\x80\x3f"))
    assert got["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert got["a"] is got["tie"] is got["p"]
    assert got["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert got["row"].tolist() == [3, 4, 5]
    assert got["scalar"].tolist() == 5
    assert got["none"].shape == (0, 3)
    assert got["b"].dtype == ml_dtypes.bfloat16
    assert float(got["b"][0]) == 1
    assert all(array.flags.writeable for array in got.values())


def test_a_big_endian_torch_zip_is_read(tmp_path: Path) -> None:
    data = torch_zip(table(a=tensor()), order=b"big", k0=FLOATS.astype(">f4").tobytes())
    assert load_bytes(tmp_path, data)["a"].ravel().tolist() == FLOATS.tolist()


@pytest.mark.parametrize("is_little", [True, False])
def test_a_torch_file_from_before_the_zip_format_is_read(tmp_path: Path, is_little: bool) -> None:
    data = table(a=tensor("77", is_legacy=True))
    storage = struct.pack("<q", 6) + FLOATS.astype("<f4" if is_little else ">f4").tobytes()
    got = load_bytes(tmp_path, torch_legacy(data, ["77"], storage, is_little=is_little))
    assert got["a"].ravel().tolist() == FLOATS.tolist()


def test_the_attributes_torch_sets_on_a_state_dict_are_dropped(tmp_path: Path) -> None:
    data = b"\x80\x02ccollections\nOrderedDict\n)R(" + text("a") + tensor() + b"u}"
    data += text("_metadata") + b"}sb."
    assert list(load_bytes(tmp_path, torch_zip(data, k0=FLOATS.tobytes()))) == ["a"]


class Evil:
    """Something whose unpickling makes a marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_reduce_to_os_system_never_runs(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    data = pickle.dumps({"a": Evil(marker)}, protocol)
    match = r"the global 'posix.system'.*; convert it to safetensors where the file comes from"
    refuse(tmp_path, data, match)
    refuse(tmp_path, torch_zip(data), match)
    refuse(tmp_path, torch_legacy(data, [], b""), match)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (long_text("builtins") + long_text("eval") + b"\x93" + long_text("1") + b"\x85R.", "eval"),
        (b"c__builtin__\ngetattr\n" + text("a") + text("upper") + b"\x86R.", "getattr"),
        (b"cnumpy\nload\n" + text("x") + b"\x85R.", "numpy.load"),
        (b"cnumpy.core.multiarray\nos.system\n.", "os.system"),
        (b"cbuiltins\ndict.__class__\n.", "__class__"),
        (b"ctorch.serialization\nload\n.", "torch.serialization.load"),
        (b"c\xc3\xa9\nx\n.", "decode"),
        (b"cos\nsystem\n.", "'os.system'"),
        (b"(ios\nsystem\n.", "opcode INST"),
        (b"(cos\nsystem\no.", "opcode OBJ"),
        (b"ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
        (b"\x82\x01.", "opcode EXT1"),
        (b"\x83\x01\x00.", "opcode EXT2"),
        (b"\x84\x01\x00\x00\x00.", "opcode EXT4"),
        (b"\x97.", "opcode NEXT_BUFFER"),
        (b"\x98.", "opcode READONLY_BUFFER"),
        (b"Pkey\n.", "opcode PERSID"),
        (b"I1\n.", "opcode INT"),
        (b"\x80\x02.", "opcode PROTO"),
        (b"\x8a\x10" + b"\xff" * 15 + b"\x0f.", "integer of 124 bits"),
        (b"\x8b" + struct.pack("<i", 5) + b"12345.", "opcode LONG4"),
        (b"\x95" + struct.pack("<Q", 2**62) + b"N.", "a frame of"),
        (b"\x8d" + struct.pack("<Q", 2**62) + b"a.", "expected"),
        (b"\x8e" + struct.pack("<Q", 2**64 - 1) + b"a.", "bytes"),
        (b"\x96" + struct.pack("<Q", 2**40) + b"a.", "bytes"),
        (b"X\xff\xff\xff\x7fa.", "expected"),
        (b"Nr\x00\x00\x00\x7f.", "memo index 2130706432, wanted 0"),
        (b"h\x00.", "memo index 0 of 0"),
        (b"j\x00\x00\x00\x01.", "memo index"),
        (b"R.", "too small a stack"),
        (b"N(\x85.", "too small a stack"),
        (b"u.", "too small a stack"),
        (b"\x94.", "memo index"),
        (b".", "too small a stack"),
        (b"NR.", "too small a stack"),
        (b"NN", "no more data|exhausted"),
        (b"\xff.", "unknown"),
        (b"NNR.", "TypeError|UnpicklingError"),
        (b"cnumpy\nndarray\n)R.", "a call of numpy.ndarray"),
        (b"cnumpy\ndtype\n" + text("O8") + b"\x85R.", "dtype 'O8'"),
        (b"cnumpy\ndtype\n" + text("f4,O") + b"\x85R.", "dtype 'f4,O'"),
        (b"cnumpy\ndtype\n]\x85R.", "dtype list"),
        (b"cnumpy\ndtype\n" + text("f4") + b"\x85R(K\x03" + text("<") + b"NN}tb.", "fields"),
        (b"cnumpy\ndtype\n" + text("f4") + b"\x85R(K\x03" + text("x") + b"NNNtb.", "byte order"),
        (b"cnumpy\ndtype\n" + text("f4") + b"\x85RNb.", "fields"),
        (b"c_codecs\nencode\n" + text("aa") + text("rot13") + b"\x86R.", "latin1"),
        (b"c_codecs\nencode\nN" + text("latin1") + b"\x86R.", "latin1"),
        (b"c_codecs\nencode\n}" + text("build") + b"Nsb.", "state for a Global"),
        (b"c_codecs\nencode\nN}" + text("build") + b"Ns\x86b.", "state for a Global"),
        (b"}}" + text("a") + b"Nsb.", "AttributeError"),
        (b"]" + b"\x85" * 40 + b".", "wider or deeper than 32"),
        (b"(" + b"N" * 40 + b"t.", "wider or deeper than 32"),
        (b"}NN\x86Ns.", "a tuple as the key"),
        (b"}(" + text("a") + b"NNN\x86Nu.", "a tuple as the key|odd"),
        (b"}]Ns.", "TypeError"),
        (b"]" + text("a") + b"a.", "a list, wanted a dict"),
        (b"}" + text("a") + b"K\x01s.", "'a' of type int, wanted an array"),
        (b"}" + text("a") + b"}s.", "'a' of type dict.*save only the state_dict"),
        (b"}K\x01Ns.", "int of type NoneType"),
        (b"}" + text("a") + tensor() + b"s.", "a torch storage in a pickle without any"),
        (b"Q.", "too small a stack"),
        (text("0") + b"Q.", "not a torch storage"),
        (b"(" + text("module") + b"NNNNtQ.", "not a torch storage"),
        (b"(" + text("storage") + b"cnumpy\nndarray\n" + text("0") + b"NNtQ.", "without type"),
        (b"(" + text("storage") + b"NNNNtQ.", "without type"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.", "without a storage"),
        (b"}.trailing", "8 bytes after the end"),
    ],
)
def test_a_hostile_opcode_stream_is_refused(tmp_path: Path, data: bytes, match: str) -> None:
    refuse(tmp_path, b"\x80\x04" + data, match)


@pytest.mark.parametrize("protocol", [0, 1, 6, 255])
def test_an_unknown_protocol_is_no_known_format(tmp_path: Path, protocol: int) -> None:
    refuse(tmp_path, b"\x80" + bytes([protocol]) + b"}.", "that start with .* wanted safetensors")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (tensor(size=7), "no torch storage '0' of 28 bytes"),
        (tensor("../data.pkl"), "no torch storage"),
        (tensor("9"), "no torch storage '9'"),
        (tensor(offset=1), "reaches past"),
        (tensor(strides=(4, 1)), "reaches past"),
        (tensor(strides=(2**62, 2**62)), "reaches past"),
        (tensor(offset=-1), "without offset"),
        (tensor(shape=(-2, 3)), "sizes >= 0"),
        (tensor(shape=(2, 3, 1)), "argument"),
        (tensor(shape=(1,) * 9, strides=(1,) * 9), "rank over 8"),
        (tensor(shape=(2**40, 1), strides=(0, 0)), "over 8 times"),
        (tensor(shape=(2**62, 2**62, 0), strides=(0, 0, 0)), r"2\*\*63"),
        (tensor(kind="torch\nComplexFloatStorage"), "ComplexFloatStorage"),
        (tensor(is_legacy=True).replace(b"NtQ", b"\x88tQ"), "view of another"),
    ],
)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(
    tmp_path: Path, value: bytes, match: str
) -> None:
    refuse(tmp_path, torch_zip(table(a=value), k0=FLOATS.tobytes()), match)


def test_a_storage_has_one_meaning(tmp_path: Path) -> None:
    data = table(a=tensor(), b=tensor(kind="torch\nIntStorage"))
    refuse(tmp_path, torch_zip(data, k0=FLOATS.tobytes()), "two meanings")


def test_a_bool_of_two_is_refused(tmp_path: Path) -> None:
    data = table(a=tensor(kind="torch\nBoolStorage", size=1, shape=(1,), strides=(1,)))
    refuse(tmp_path, torch_zip(data, k0=b"\x02"), "neither 0 nor 1")


@pytest.mark.parametrize(
    ("data", "keys", "storages", "match"),
    [
        (table(a=tensor("7", is_legacy=True)), ["7"], b"", "no tensor has"),
        (table(a=tensor("7", is_legacy=True)), ["7"], struct.pack("<q", 6), "cut short"),
        (table(a=tensor("7", is_legacy=True)), ["8"], bytes(32), "no tensor has"),
        (table(a=tensor("7", is_legacy=True)), [], b"", "KeyError"),
        (table(), [], b"x", "1 bytes after"),
    ],
)
def test_a_damaged_legacy_torch_file_is_refused(
    tmp_path: Path, data: bytes, keys: list[str], storages: bytes, match: str
) -> None:
    refuse(tmp_path, torch_legacy(data, keys, storages), match)


def test_an_unknown_legacy_version_is_refused(tmp_path: Path) -> None:
    data = torch_legacy(table(), [], b"").replace(struct.pack("<H", 1001), b"\x01\x00", 1)
    refuse(tmp_path, data, "unknown version")
    keys = torch_legacy(table(), [], b"").removesuffix(pickle.dumps([], 2)) + pickle.dumps({}, 2)
    refuse(tmp_path, keys, "list of torch storages")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        # Printed or compared, these lists would have 10 ** 6 items.
        (b"]\x94" + b"".join(b"](" + b"h%c" % i * 10 + b"e\x94" for i in range(6)), "left over"),
        (b"](" * 50_000 + b"N" + b"e" * 50_000, "a list, wanted a dict"),
        (b"N" + b"\x85" * 100_000, "wider or deeper"),
        (b"N\x94" * 100_001, "more than 200000 opcodes"),
        (b"(" + b"K\x01" * 150_000 + b"t", "wider or deeper"),
        (b"ccollections\nOrderedDict\n)R" * 50_000, "left over"),
    ],
    ids=["lists", "deep", "tuples", "memo", "wide", "dicts"],
)
def test_a_bomb_is_refused_in_bounded_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, match: str
) -> None:
    monkeypatch.setattr(safe_pickle, "MAX_OPCODES", 200_000)  # tracemalloc is slow
    begin = time.monotonic()
    tracemalloc.start()
    refuse(tmp_path, b"\x80\x04" + data + b".", match)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 32 << 20
    assert time.monotonic() - begin < 10


def test_opcodes_without_end_are_refused_in_time(tmp_path: Path) -> None:
    begin = time.monotonic()
    refuse(tmp_path, b"\x80\x04]" + b"Na" * 2_000_000 + b".", "more than 2000000 opcodes")
    assert time.monotonic() - begin < 20


def corpus() -> list[bytes]:
    arrays = {"a": FLOATS, "b": np.ones((2, 2), ml_dtypes.bfloat16), "c": np.float32(1)}
    storage = struct.pack("<q", 6) + FLOATS.tobytes()
    stream = io.BytesIO()
    np.savez_compressed(stream, a=FLOATS, b=np.ones((2, 2)))
    return [
        *(pickle.dumps(arrays, protocol) for protocol in (2, 3, 4, 5)),
        torch_zip(table(a=tensor(), b=tensor(offset=1, shape=(2,), strides=(2,))), k0=bytes(24)),
        torch_legacy(table(a=tensor("7", is_legacy=True)), ["7"], storage),
        stream.getvalue(),
    ]


@pytest.mark.parametrize("index", range(7))
def test_flipped_bytes_give_arrays_or_a_checkpoint_error(tmp_path: Path, index: int) -> None:
    original = corpus()[index]
    load_bytes(tmp_path, original)
    chance = random.Random(index)
    for _ in range(400):
        data = bytearray(original)
        for _ in range(chance.choice((1, 1, 2, 8))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        cut = chance.randrange(len(data)) if chance.random() < 0.2 else len(data)
        try:
            got = load_bytes(tmp_path, bytes(data[:cut]))
        except CheckpointError:
            continue
        assert all(isinstance(array, np.ndarray) for array in got.values()), f"seed {index}"


def test_torch_itself_writes_what_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weight = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": weight, "t": weight.T, "b": weight.bfloat16(), "p": torch.nn.Parameter(weight)}
    for is_zip in (True, False):
        torch.save(tensors, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
        got = load(tmp_path / "x.pt")
        for name, value in tensors.items():
            np.testing.assert_array_equal(
                got[name].astype(np.float32), value.detach().float().numpy()
            )
