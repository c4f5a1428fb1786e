"""Rows 53-57, 63 and 67 of the fault matrix, as far as they are the cache's."""

import errno
import json
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest

from ark_dist.core.errors import CacheError
from ark_dist.core.source import Binary, Source
from ark_dist.launch import cache, cache_files
from ark_dist.launch.cache import CompileCache, Job

REPOSITORY = Path(__file__).resolve().parents[1]
IS_ROOT = os.geteuid() == 0
KEY_A, KEY_B = "a" * 64, "b" * 64
WAIT_S = 30.0
Log = pytest.LogCaptureFixture


def product_of(text: str) -> bytes:
    return b"\x7fELF" + text.encode()


def copy_build(source_path: Path, product: Path, scratch: Path) -> None:
    assert scratch.is_dir()
    product.write_bytes(product_of(source_path.read_text()))


def job(
    key: str = KEY_A,
    text: str = "int a;",
    *,
    name: str = "toy",
    build: cache.Build = copy_build,
    wait_s: float = WAIT_S,
    on_source: Callable[[Path], None] | None = None,
) -> Job:
    return Job(key, Source(name, "c++", text), "portable", build, wait_s, on_source)


def no_build(source_path: Path, product: Path, scratch: Path) -> None:
    raise AssertionError("a hit must not build")


def warnings(log: Log) -> list[str]:
    return [record.getMessage() for record in log.records if record.name == "ark_dist.cache"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def own_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Log) -> Path:
    temp = tmp_path / "temp"
    temp.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    caplog.set_level(logging.WARNING, "ark_dist.cache")
    return temp


def test_a_second_process_finds_what_the_first_one_built(root: Path, caplog: Log) -> None:
    first = CompileCache(root).get_or_build(job())
    second = CompileCache(root).get_or_build(job(build=no_build))
    assert (first.is_cached, second.is_cached) == (False, True)
    assert first.path == second.path == root / KEY_A / "build" / "kernel.so"
    assert second.path.read_bytes() == product_of("int a;")
    assert second.source_path.read_text() == "int a;"
    assert not warnings(caplog)
    assert [path.name for path in root.iterdir()] == [KEY_A]


def test_folders_and_files_belong_to_the_user_alone_whatever_the_umask_is(root: Path) -> None:
    before = os.umask(0)
    try:
        binary = CompileCache(root).get_or_build(job())
    finally:
        os.umask(before)
    for path in (root, root / KEY_A, binary.path.parent, binary.path, binary.source_path):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert CompileCache(root).get_or_build(job(build=no_build)).is_cached


def test_the_source_is_announced_in_its_final_place_on_a_build_and_on_a_hit(root: Path) -> None:
    seen: list[tuple[Path, str]] = []
    wanted = job(on_source=lambda path: seen.append((path, path.read_text())))
    for _ in range(2):
        CompileCache(root).get_or_build(wanted)
    assert seen == [(root / KEY_A / "kernel.cpp", "int a;")] * 2


def test_a_failed_build_keeps_the_source_and_nothing_else(root: Path) -> None:
    def fail(source_path: Path, product: Path, scratch: Path) -> None:
        product.write_bytes(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        CompileCache(root).get_or_build(job(build=fail))
    assert {path.name for path in root.rglob("*")} == {KEY_A, "kernel.cpp", "lock"}
    assert CompileCache(root).ls() == () == CompileCache(root).verify()


def test_ls_clear_and_verify_tell_what_is_there(root: Path) -> None:
    store = CompileCache(root)
    assert (store.ls(), store.clear(), store.verify()) == ((), 0, ())
    store.get_or_build(job(KEY_B, name="second"))
    store.get_or_build(job(KEY_A, name="first"))
    assert {(entry.key, entry.name) for entry in store.ls()} == {
        (KEY_A, "first"),
        (KEY_B, "second"),
    }
    entry = store.ls()[0]
    assert (entry.language, entry.isa) == ("c++", "portable")
    assert entry.size_bytes == len("int a;") + len(product_of("int a;"))
    assert store.verify() == ()
    (root / KEY_B / "build" / "kernel.so").write_bytes(b"")
    assert store.verify() == (f"{KEY_B}: kernel.so has 0 bytes, not 10",)
    assert store.clear() == 2
    assert list(root.iterdir()) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def foreign_arch(path: Path) -> None:
    data = bytearray(path.read_bytes().ljust(64, b"\0"))
    data[18:20] = (0x1234).to_bytes(2, "little")
    path.write_bytes(data)


def to_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "one bit flipped": flip,
    "another architecture": foreign_arch,
    "gone": Path.unlink,
    "writable by all": lambda path: path.chmod(0o666),
    "a symbolic link": to_link,
    "a FIFO": to_fifo,
    "deeply nested": lambda path: path.write_text("[" * 100_000),
    "null": lambda path: path.write_text("null"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["build/kernel.so", "build/manifest.json", "kernel.cpp"])
def test_a_damaged_file_is_made_good_with_one_warning(
    root: Path, caplog: Log, damage: str, file: str
) -> None:
    CompileCache(root).get_or_build(job())
    DAMAGES[damage](root / KEY_A / file)
    assert len(CompileCache(root).verify()) == 1
    binary = CompileCache(root).get_or_build(job())
    # the source is part of the job: it is written again, and the sound product stays
    assert binary.is_cached == (file == "kernel.cpp")
    assert binary.path.read_bytes() == product_of("int a;")
    assert binary.source_path.read_text() == "int a;"
    assert len(warnings(caplog)) == 1
    assert re.search(f"cache entry .*{KEY_A} is damaged: .*; compiling it again", caplog.text)
    assert CompileCache(root).get_or_build(job(build=no_build)).is_cached
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("part", ["build/kernel.so", "build", "."])
def test_what_was_swapped_with_another_entry_is_built_again(
    root: Path, caplog: Log, part: str
) -> None:
    store = CompileCache(root)
    jobs = [job(KEY_A, "int a;"), job(KEY_B, "int b;")]
    for each in jobs:
        store.get_or_build(each)
    one, other = root / KEY_A / part, root / KEY_B / part
    if part == ".":
        one, other = root / KEY_A, root / KEY_B
    one.rename(root / "third")
    other.rename(one)
    (root / "third").rename(other)
    for each in jobs:
        binary = store.get_or_build(each)
        assert binary.path.read_bytes() == product_of(each.source.text)
    assert len(warnings(caplog)) == 2


def test_an_entry_that_is_a_link_or_a_file_is_replaced(root: Path, tmp_path: Path) -> None:
    store = CompileCache(root)
    store.get_or_build(job())
    target = tmp_path / "target"
    (root / KEY_A).rename(target)
    (root / KEY_A).symlink_to(target)
    (root / KEY_B).write_text("a file")
    assert not store.get_or_build(job()).is_cached
    assert not (root / KEY_A).is_symlink()
    assert {path.name for path in target.iterdir()} == {"build", "kernel.cpp", "lock"}
    assert store.get_or_build(job(KEY_B)).path.is_file()


WRITER = """
import contextlib, os, sys, time
from pathlib import Path
from ark_dist.core.source import Source
from ark_dist.launch import cache

root, rounds, has_locks = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "locks"
if not has_locks:
    cache._locked = lambda entry, wait_s: contextlib.nullcontext(True)
me = str(os.getpid())

def build(source_path, product, scratch):
    product.write_text(source_path.read_text() + me)
    with open(root.parent / "builds", "a") as builds:
        builds.write("x")

print("ready", flush=True)
sys.stdin.readline()
for turn in range(rounds):
    text = f"round {turn} "
    made = cache.CompileCache(root).get_or_build(
        cache.Job(f"{turn:064x}", Source("toy", "c++", text), "portable", build, 30.0)
    )
    assert made.source_path.read_text() == text
    print(made.path.read_text(), flush=True)
"""


Process = subprocess.Popen[str]


def start(command: list[str]) -> Process:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, text=True, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=pipe
    )


def line_of(process: Process) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("locks", ["locks", "no locks"])
def test_eight_cold_writers_agree_on_one_complete_entry(root: Path, locks: str) -> None:
    rounds = 50
    command = [sys.executable, "-c", WRITER, str(root), str(rounds), locks]
    writers = [start(command) for _ in range(8)]
    try:
        for writer in writers:
            assert line_of(writer) == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        results = [writer.communicate(timeout=60) for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert [errors for _, errors in results] == [""] * 8
    assert [writer.returncode for writer in writers] == [0] * 8
    assert len({output for output, _ in results}) == 1, "all hold the same product of each round"
    assert len(list(root.iterdir())) == rounds
    assert CompileCache(root).verify() == ()
    if locks == "locks":
        assert len((root.parent / "builds").read_text()) == rounds


HOLDER = """
import sys, time
from pathlib import Path
from ark_dist.core.source import Source
from ark_dist.launch import cache

def build(source_path, product, scratch):
    product.write_bytes(b"half")
    print("building", flush=True)
    time.sleep(600)

job = cache.Job("a" * 64, Source("toy", "c++", "int a;"), "portable", build, 30.0)
cache.CompileCache(Path(sys.argv[1])).get_or_build(job)
"""


@pytest.fixture
def holder(root: Path) -> Iterator[Process]:
    process = start([sys.executable, "-c", HOLDER, str(root)])
    yield process
    process.kill()
    process.communicate(timeout=60)


def test_the_next_process_goes_on_when_a_builder_was_killed(
    root: Path, holder: Process, caplog: Log
) -> None:
    assert line_of(holder) == "building\n"
    assert len(list(root.glob(".tmp-*"))) == 1
    holder.kill()
    holder.wait()
    binary = CompileCache(root).get_or_build(job())
    assert binary.path.read_bytes() == product_of("int a;")
    assert not warnings(caplog)
    assert [path.name for path in root.iterdir()] == [KEY_A], "the dead one's folder is swept"


def test_a_builder_that_never_ends_is_waited_for_only_so_long(
    root: Path, holder: Process, caplog: Log
) -> None:
    assert line_of(holder) == "building\n"
    holder.send_signal(signal.SIGSTOP)
    assert CompileCache(root).clear() == 0, "what is being built stays"
    binary = CompileCache(root).get_or_build(job(wait_s=0.2))
    assert binary.path.read_bytes() == product_of("int a;")
    assert re.search(r"waited 0\.2 s for another process to build .*; going on", caplog.text)
    assert len(list(root.glob(".tmp-*"))) == 1, "a living process keeps its folder"


def fallback_of(store: CompileCache, temp: Path) -> Binary:
    binary = store.get_or_build(job())
    assert binary.path.read_bytes() == product_of("int a;")
    assert temp in binary.path.parents
    assert stat.S_IMODE(binary.path.parents[2].stat().st_mode) == 0o700
    return binary


def check_fallback(root: Path, temp: Path, log: Log, problem: str) -> None:
    """Use a bad folder twice: the kernels go elsewhere, with one warning."""
    store = cache.open_cache(root)
    first = fallback_of(store, temp)
    assert cache.open_cache(root).get_or_build(job(build=no_build)).path == first.path
    assert len(warnings(log)) == 1
    text = rf"cache folder {root} .*{problem}.*; this process keeps its kernels in {temp}/ark_dist-"
    assert re.search(text + ".*; set ARK_DIST_CACHE_DIR to a folder that only you", log.text)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_a_folder_that_others_can_write_is_not_used(
    root: Path, own_temp: Path, caplog: Log, mode: int
) -> None:
    CompileCache(root).get_or_build(job())
    root.chmod(mode)
    check_fallback(root, own_temp, caplog, rf"can be written by others \(mode {mode:04o}\)")
    for use in (CompileCache(root).ls, CompileCache(root).clear):
        with pytest.raises(CacheError, match=r"can be written by others.*set ARK_DIST_CACHE_DIR"):
            use()
    assert len(CompileCache(root).verify()) == 1


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used(root: Path, own_temp: Path, caplog: Log) -> None:
    CompileCache(root).get_or_build(job())
    os.chown(root, 12345, -1)
    check_fallback(root, own_temp, caplog, "belongs to user 12345, this process runs as user 0")


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a file away")
@pytest.mark.parametrize("part", [".", "build", "build/kernel.so", "build/manifest.json"])
def test_a_product_of_another_user_is_not_loaded(root: Path, caplog: Log, part: str) -> None:
    CompileCache(root).get_or_build(job())
    os.chown(root / KEY_A / part, 12345, -1)
    assert not CompileCache(root).get_or_build(job()).is_cached
    assert len(warnings(caplog)) == 1
    assert CompileCache(root).verify() == ()


@pytest.mark.parametrize("is_dangling", [False, True])
def test_a_folder_that_is_a_link_is_not_used(
    root: Path, own_temp: Path, caplog: Log, is_dangling: bool
) -> None:
    if not is_dangling:
        (root.parent / "target").mkdir(mode=0o700)
    root.symlink_to(root.parent / "target")
    problem = r"can't be used \(File exists\)" if is_dangling else "is a symbolic link"
    check_fallback(root, own_temp, caplog, problem)


def test_a_folder_below_a_file_is_not_used(tmp_path: Path, own_temp: Path, caplog: Log) -> None:
    (tmp_path / "file").write_text("")
    check_fallback(tmp_path / "file" / "cache", own_temp, caplog, "Not a directory")


@pytest.mark.skipif(IS_ROOT, reason="root may write whatever the mode says")
def test_a_read_only_folder_is_not_used(root: Path, own_temp: Path, caplog: Log) -> None:
    root.mkdir(mode=0o555)
    check_fallback(root, own_temp, caplog, "Permission denied")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_refuses_new_files_is_not_used(
    root: Path, own_temp: Path, caplog: Log, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    make = tempfile.mkdtemp

    def refuse(prefix: str, dir: Path) -> str:
        if dir == root:
            raise OSError(number, os.strerror(number), str(dir))
        return make(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    check_fallback(root, own_temp, caplog, os.strerror(number))


def test_a_folder_that_is_full_half_way_is_not_used(
    root: Path, own_temp: Path, caplog: Log
) -> None:
    def fill(source_path: Path, product: Path, scratch: Path) -> None:
        if root in product.parents:
            product.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(product))
        copy_build(source_path, product, scratch)

    binary = CompileCache(root).get_or_build(job(build=fill))
    assert own_temp in binary.path.parents
    assert len(warnings(caplog)) == 1
    assert not list(root.glob(".tmp-*"))
    assert not (root / KEY_A / "build").exists()


def test_a_read_only_folder_still_gives_what_it_has(
    root: Path, caplog: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    CompileCache(root).get_or_build(job())
    monkeypatch.setattr(tempfile, "mkdtemp", None)
    assert CompileCache(root).get_or_build(job(build=no_build)).is_cached
    assert not warnings(caplog)


def test_no_folder_at_all_is_an_error_with_a_way_out(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(prefix: str, dir: Path) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(dir))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(CacheError, match=r"No space left.*set ARK_DIST_CACHE_DIR"):
        CompileCache(root).get_or_build(job())


def test_the_fallback_folder_of_a_dead_process_is_swept_and_no_other(own_temp: Path) -> None:
    mine = cache_files.stamp(os.getpid())
    pid, start, place = mine.split("-")
    dead = own_temp / f"ark_dist-{pid}-{int(start) + 1}-{place}-abc"
    other_boot = own_temp / f"ark_dist-{pid}-{int(start) + 1}-{'0' * 12}-abc"
    link = own_temp / f"ark_dist-{pid}-{int(start) + 2}-{place}-abc"
    kept = [own_temp / f"ark_dist-{mine}-abc", other_boot, own_temp / "ark_dist-notes"]
    for folder in (dead, *kept):
        folder.mkdir(mode=0o700)
        (folder / "file").write_text("")
    link.symlink_to(kept[2])
    cache_files.sweep(own_temp, "ark_dist-")
    assert set(own_temp.iterdir()) == {*kept, link}
    assert all((folder / "file").exists() for folder in kept)


NAMES = {
    "shell": '"; system("touch pwned"); //',
    "newline": "a\n#include </etc/passwd>\n",
    "path": "../../../../tmp/pwned/\0",
    "long": "n" * 10_000,
    "unicode": "\u202eこんにちは 🦊 \udcff",
    "empty": "",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_hostile_name_is_data_and_nothing_else(root: Path, name: str) -> None:
    store = CompileCache(root)
    binary = store.get_or_build(job(name=name))
    assert binary.path == root / KEY_A / "build" / "kernel.so"
    assert store.get_or_build(job(build=no_build)).is_cached, "a name is no part of the key"
    assert [entry.name for entry in store.ls()] == [name[: cache.NAME_LIMIT]]
    assert store.verify() == ()
    assert binary.source_path.read_text() == "int a;"


@pytest.mark.parametrize("jump_s", [-1e9, 1e9])
def test_a_clock_that_jumps_changes_nothing(
    root: Path, caplog: Log, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    now = time.time
    CompileCache(root).get_or_build(job())
    monkeypatch.setattr(time, "time", lambda: now() + jump_s)
    assert CompileCache(root).get_or_build(job(build=no_build)).is_cached
    assert not CompileCache(root).get_or_build(job(KEY_B)).is_cached
    monkeypatch.undo()
    assert CompileCache(root).get_or_build(job(KEY_B, build=no_build)).is_cached
    assert CompileCache(root).verify() == ()
    assert not warnings(caplog)


def test_an_entry_without_locks_is_still_right(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: Log
) -> None:
    def refuse(lock: object, **options: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    assert not CompileCache(root).get_or_build(job()).is_cached
    assert CompileCache(root).get_or_build(job(build=no_build)).is_cached
    assert CompileCache(root).clear() == 1
    assert not warnings(caplog)


def test_clearing_in_the_middle_of_a_build_costs_nothing_but_work(root: Path) -> None:
    def build(source_path: Path, product: Path, scratch: Path) -> None:
        copy_build(source_path, product, scratch)
        shutil.rmtree(source_path.parent)

    binary = CompileCache(root).get_or_build(job(build=build))
    assert binary.path.is_file()
    assert binary.source_path.read_text() == "int a;"
    assert CompileCache(root).verify() == ()


def test_the_manifest_is_readable_by_people(root: Path) -> None:
    binary = CompileCache(root).get_or_build(job())
    manifest = json.loads((binary.path.parent / "manifest.json").read_text())
    assert manifest["entry"]["name"] == "toy"
    assert set(manifest["files"]) == {"kernel.cpp", "kernel.so"}


def test_the_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
    assert CompileCache(None).root == Path("/somewhere/cache/ark_dist")
