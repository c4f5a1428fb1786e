"""An index and its files are believed only where every claim in them is true."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ark_dist.checkpoint.index import INDEX_NAME, Index, build_index, parse_index
from ark_dist.checkpoint.reader import Checkpoint, open_checkpoint, read_all
from ark_dist.core.errors import CheckpointError, ShardCorruptError
from ark_dist.safetensors_file import build_header
from tests.checkpoint_cases import is_same, two_shards, weights, write_folder, write_shard

ONE = {"w": np.ones(2, np.float32)}


def refuse(path: Path, match: str, kind: type[CheckpointError] = CheckpointError) -> None:
    begin, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(kind, match=match) as caught:
        open_checkpoint(path)
    assert str(path.parent) in str(caught.value)
    # row 42 of the fault matrix
    assert time.monotonic() - begin < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 64 << 10


def test_a_folder_with_an_index_is_read(tmp_path: Path) -> None:
    for path in (two_shards(tmp_path), tmp_path / INDEX_NAME):
        with open_checkpoint(path) as checkpoint:
            got = read_all(checkpoint)
        assert got.keys() == weights().keys()
        assert all(is_same(got[name], array) for name, array in weights().items())


def test_a_folder_with_one_file_is_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", weights())
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == weights().keys()
        info = checkpoint.tensors["embed"]
        assert (info.name, info.shape, info.size_bytes) == ("embed", (16, 12), 768)
        assert info.file == str(tmp_path / "model.safetensors")


def test_nothing_at_the_path_is_plainly_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_checkpoint(tmp_path / "nothing")


def test_a_file_that_the_index_lists_and_is_not_there_is_named(tmp_path: Path) -> None:
    two_shards(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    refuse(tmp_path / INDEX_NAME, r"1 of 2 files are not there: 'b\.safetensors'; fetch them")


def test_a_tensor_in_another_file_than_the_index_says_is_named(tmp_path: Path) -> None:
    files = dict.fromkeys(weights(), "a.safetensors")
    two_shards(tmp_path, weight_map=files)
    refuse(tmp_path, r"a\.safetensors of \d+ bytes does not hold 3 tensors .*: 'layers\.1\.w', ")


def test_a_total_size_must_be_that_of_the_tensors(tmp_path: Path) -> None:
    two_shards(tmp_path, metadata={"total_size": 12})
    refuse(tmp_path, "found a total_size of 12 bytes, but its tensors have")


@pytest.mark.parametrize("metadata", [{}, {"total_size": 8.0}, {"total_size": 8, "x": [1]}])
def test_metadata_of_other_tools_is_accepted(tmp_path: Path, metadata: object) -> None:
    write_folder(tmp_path, {"a.safetensors": ONE}, metadata=metadata)
    open_checkpoint(tmp_path).close()


@pytest.mark.parametrize(
    "name",
    [
        *("../a.safetensors", "/etc/a.safetensors", "x/../../a.safetensors", "sub/a.safetensors"),
        *("..\\a.safetensors", "C:a.safetensors", "a\0.safetensors", ".hidden.safetensors"),
        *("..", ".", "", "\ud800.safetensors", "a" * 300 + ".safetensors", "passwd", "a.bin"),
    ],
)
def test_a_file_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    write_shard(tmp_path / "a.safetensors", ONE)
    folder = write_folder(tmp_path / "model", {}, weight_map={"w": name})
    (folder / "sub").mkdir()
    write_shard(folder / "sub" / "a.safetensors", ONE)
    refuse(folder, "damaged index .*(the shard|a shard's name)")


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def hardlink(path: Path, target: Path) -> None:
    path.hardlink_to(target)


@pytest.mark.parametrize(("make", "match"), [(link, "found a symlink"), (hardlink, "2 names")])
@pytest.mark.parametrize("name", ["a.safetensors", INDEX_NAME])
def test_links_are_followed_only_when_allowed(
    tmp_path: Path, make: Callable[[Path, Path], None], match: str, name: str
) -> None:
    folder = write_folder(tmp_path / "model", {"a.safetensors": ONE})
    (folder / name).rename(tmp_path / "elsewhere")
    make(folder / name, tmp_path / "elsewhere")
    refuse(folder, f"{match}.*, wanted a file of this folder alone.*allow_links=True")
    with open_checkpoint(folder, allow_links=True) as checkpoint:
        assert read_all(checkpoint)["w"].tolist() == [1, 1]
    direct = tmp_path / "direct"
    direct.symlink_to(tmp_path / "model" / "a.safetensors")
    with open_checkpoint(direct) as checkpoint:  # the caller named it
        assert "w" in checkpoint.tensors


def test_special_files_are_refused_without_waiting(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", {"a.safetensors": ONE})
    (folder / "a.safetensors").unlink()
    os.mkfifo(folder / "a.safetensors")
    refuse(folder, "wanted a regular file")
    (folder / "a.safetensors").unlink()
    (folder / "a.safetensors").mkdir()
    refuse(folder, "wanted a regular file")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "starts with b''"),
        (b"[]", "starts with"),
        (b"{}", "without the objects weight_map"),
        (b'{"weight_map": []}', "without the objects weight_map"),
        (b'{"weight_map": {}, "metadata": 1}', "without the objects weight_map"),
        (b'{"weight_map": {"w": 1}}', "tensor 'w' in '1', wanted a file's name"),
        (b'{"weight_map": {"w": {}}}', "wanted a file's name"),
        (b'{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}', "the name 'w' twice"),
        (b'{"weight_map": {}, "weight_map": {}}', "the name 'weight_map' twice"),
        (b'{"weight_map": {}, "metadata": {"total_size": -1}}', "the total_size '-1'"),
        (b'{"weight_map": {}, "metadata": {"total_size": 1.5}}', "the total_size '1.5'"),
        (b'{"weight_map": {}, "metadata": {"total_size": 1e999}}', "the total_size 'inf'"),
        (b'{"weight_map": {}, "metadata": {"total_size": true}}', "the total_size 'True'"),
        (b'{"weight_map": {}, "metadata": {"total_size": NaN}}', "the number 'NaN'"),
        (b'{"weight_map": {}, "metadata": {"total_size": 1%s}}' % (b"0" * 5000), "5001 digits"),
        (b'{"weight_map": {}, "metadata": {"sha256": 1}}', "sha256 that is no object"),
        (b'{"weight_map": {}, "metadata": {"sha256": {"a": "0"}}}', "the sha256 '0' of 'a'"),
        (
            b'{"weight_map": {}, "metadata": {"sha256": {"a": "%s"}}}' % (b"0" * 64),
            "sha256 of other shards",
        ),
        (b'{"weight_map": {"%s": "a.safetensors"}}' % (b"n" * 513), "a name of 513 bytes"),
        (b'{"weight_map": {"w": "a.safetensors"}', "don't nest"),
        (b'{"a":' * 100_000, "don't nest"),
        (b'{"a":' + b"[" * 1_000_000, "don't nest"),
        (b'{"a":[' + b"1," * 3_000_000 + b"1]}", "long lists"),
        (b'{"a":' + b'""' * 2_000_000, "too many strings"),
        (b'{"\xff":1}', "can't decode"),
        (b" " * 25_000_001, "wanted at most"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git LFS pointer"),
    ],
)
def test_a_false_index_is_refused(tmp_path: Path, text: bytes, match: str) -> None:
    (tmp_path / INDEX_NAME).write_bytes(text)
    refuse(tmp_path, match)


def test_too_many_names_are_refused(tmp_path: Path) -> None:
    table = {"weight_map": {str(i): "a.safetensors" for i in range(210_002)}}
    (tmp_path / INDEX_NAME).write_text(json.dumps(table))
    refuse(tmp_path, "wanted at most 200000")
    files = {str(i): f"{i}.safetensors" for i in range(10_001)}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": files}))
    refuse(tmp_path, "10001 shards, wanted at most 10000")


def test_an_alias_may_not_hide_a_tensor_of_another_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", {"a.safetensors": ONE})
    other = {"v": ONE["w"]}
    write_folder(folder, {"a.safetensors": ONE, "b.safetensors": other})
    header = build_header({"v": (ONE["w"].dtype, (2,))}, {"w": "v"})
    (folder / "b.safetensors").write_bytes(header + ONE["w"].tobytes())
    refuse(folder, "'w' is in two files")


@pytest.mark.parametrize("part", range(8))
def test_a_file_cut_short_is_corrupt_and_its_sizes_are_told(tmp_path: Path, part: int) -> None:
    two_shards(tmp_path)
    path = tmp_path / "b.safetensors"
    size_bytes = path.stat().st_size * part // 8
    os.truncate(path, size_bytes)
    refuse(tmp_path, rf"b\.safetensors: .*\b{size_bytes}\b", ShardCorruptError)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    two_shards(tmp_path)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
    (tmp_path / "b.safetensors").write_bytes(pointer)
    refuse(tmp_path, "a git LFS pointer of 66 bytes, wanted .*lfs pull", ShardCorruptError)


def test_a_header_bomb_in_a_file_of_the_index_is_refused(tmp_path: Path) -> None:
    two_shards(tmp_path)
    for length in (2**63, 2**64 - 1, 100_000_001):
        (tmp_path / "b.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
        refuse(tmp_path, f"a header of {length} bytes", ShardCorruptError)


def test_an_index_comes_back_as_it_was_written() -> None:
    index = Index({"w": "a.safetensors"}, 8, {"a.safetensors": "0" * 64})
    assert parse_index(build_index(index)) == index


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(["weight_map", "metadata", "x"]), VALUES))
def test_any_json_is_an_index_or_a_value_error(table: dict[str, object]) -> None:
    try:
        index = parse_index(json.dumps(table).encode())
    except ValueError:
        return
    assert all("/" not in shard and shard.endswith(".safetensors") for shard in index.shards)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.data())
def test_a_header_with_any_bytes_changed_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    write_shard(path, weights())
    text = bytearray(path.read_bytes())
    last = int.from_bytes(text[:8], "little") + 7
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, last))
        text[position] = data.draw(st.integers(0, 255))
    path.write_bytes(text)
    try:
        checkpoint = open_checkpoint(path)
        check_places(checkpoint, len(text))
        read_all(checkpoint)
    except ShardCorruptError as error:
        assert str(path) in str(error)


def check_places(checkpoint: Checkpoint, size_bytes: int) -> None:
    for info in checkpoint.tensors.values():
        assert 8 <= info.offset <= info.offset + info.size_bytes <= size_bytes
