"""Rows 51-57, 63 and 67 of the fault matrix, as far as they are the compiler's."""

import ctypes
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ark_dist.core.errors import CacheError, CompileError, CompilerNotFoundError
from ark_dist.core.settings import ISAS, Settings, read_settings
from ark_dist.core.source import Binary, Source
from ark_dist.launch import cache, compile, cpuinfo

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = 'extern "C" int add(int a, int b) { return a + b; }\n'
X86 = os.uname().machine == "x86_64"
ELF_MACHINE = compile.ELF_MACHINES.get(os.uname().machine, 62)
needs_gcc = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
needs_x86 = pytest.mark.skipif(not X86, reason="these instruction sets are x86_64's")

# A compiler that takes milliseconds: it notes its arguments, then runs the lines of a test, in
# which $out is the file to make and $in the source.
FAKE = """#!/bin/sh
printf '%s\\n' "$*" >> {folder}/calls
for word in "$@"; do
  case "$word" in *.cpp) in="$word";; esac
  [ "$last" = -o ] && out="$word"
  last="$word"
done
{body}
"""


def elf(machine: int, kind: int = 3, bits: int = 2) -> str:
    """Return the shell's command that writes the start of an ELF file."""
    header = bytes([0x7F, *b"ELF", bits, 1, 1]).ljust(16, b"\0")
    header += kind.to_bytes(2, "little") + machine.to_bytes(2, "little")
    octal = "".join(f"\\{byte:03o}" for byte in header.ljust(64, b"\0"))
    return f'printf \'{octal}\' > "$out"; cat "$in" >> "$out"'


GOOD = elf(ELF_MACHINE)


@pytest.fixture(autouse=True)
def own_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    temp = tmp_path / "temp"
    temp.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    return temp


def settings_of(tmp_path: Path, command: str | None = None, timeout_s: float = 60.0) -> Settings:
    plain = read_settings({"ARK_DIST_CACHE_DIR": str(tmp_path / "cache")})
    return dataclasses.replace(plain, compiler=command, compile_timeout_s=timeout_s)


def fake(tmp_path: Path, body: str, timeout_s: float = 60.0) -> Settings:
    script = tmp_path / "fake-c++"
    script.write_text(FAKE.format(folder=tmp_path, body=body))
    script.chmod(0o755)
    return settings_of(tmp_path, str(script), timeout_s)


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def compiled(settings: Settings, text: str = TEXT, name: str = "toy") -> Binary:
    return compile.compile_source(Source(name, "c++", text), isa="portable", settings=settings)


def failure(settings: Settings, name: str = "toy") -> str:
    with pytest.raises(CompileError) as caught:
        compiled(settings, name=name)
    return str(caught.value)


def is_running(pid: int) -> bool:
    """Tell whether a process runs; one that ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# Row 51: the compiler fails


def test_a_compile_error_names_program_isa_command_source_and_the_last_lines(
    tmp_path: Path,
) -> None:
    settings = fake(tmp_path, 'for i in $(seq 50); do echo "line $i"; done; exit 1')
    text = failure(settings)
    source = re.search(r"source: (.*)", text)
    assert "program 'toy', isa portable: the compiler ended with exit code 1" in text
    assert f"command: {settings.compiler} -O3 -std=c++17" in text
    assert [line.strip() for line in text.splitlines()[4:]] == [f"line {i}" for i in range(21, 51)]
    assert source is not None
    assert Path(source[1]).read_text() == TEXT


def test_a_compiler_that_says_nothing_is_reported_too(tmp_path: Path) -> None:
    assert failure(fake(tmp_path, "exit 3")).endswith("output: none")


def test_a_compiler_that_crashes_is_reported_with_the_signal(tmp_path: Path) -> None:
    assert "the compiler was killed by SIGSEGV" in failure(fake(tmp_path, "kill -SEGV $$"))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("exit 0", "left no library"),
        (': > "$out"', "not a shared library"),
        ('echo garbage > "$out"', "not a shared library"),
        (elf(ELF_MACHINE, kind=2), "not a shared library"),
        (elf(ELF_MACHINE, bits=1), "not a shared library"),
        (elf(0x1234), "is for another machine .ELF machine 4660"),
    ],
)
def test_success_without_a_library_is_a_failure(tmp_path: Path, body: str, problem: str) -> None:
    assert re.search(problem, failure(fake(tmp_path, body)))
    assert cache.CompileCache(tmp_path / "cache").ls() == ()


def test_a_failure_is_not_remembered(tmp_path: Path) -> None:
    settings = fake(tmp_path, f"[ -e {tmp_path}/fixed ] || exit 1\n{GOOD}")
    failure(settings)
    (tmp_path / "fixed").touch()
    assert not compiled(settings).is_cached


def test_a_flag_that_an_old_compiler_refuses_is_left_out(tmp_path: Path) -> None:
    refusal = "c++: error: unrecognized command-line option '-nostdlib++'; did you mean '-O3'?"
    settings = fake(
        tmp_path, f'case "$*" in *-nostdlib++*) echo "{refusal}"; exit 1;; esac\n{GOOD}'
    )
    compiled(settings)
    first, second = calls(tmp_path)
    assert second == first.replace(" -nostdlib++", "")


@pytest.mark.parametrize("proposal", ["", "; did you mean '-nostdlib++'?"])
def test_a_flag_that_must_stay_is_not_left_out(tmp_path: Path, proposal: str) -> None:
    failure(fake(tmp_path, f"echo \"error: unrecognized option '-fwrapv'{proposal}\"; exit 1"))
    assert len(calls(tmp_path)) == 1


def test_a_full_disk_under_the_compiler_sends_the_kernel_elsewhere(
    tmp_path: Path, own_temp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = 'echo "as: error closing: No space left on device"; exit 1'
    settings = fake(tmp_path, f'case "$out" in {tmp_path}/cache/*) {full};; esac\n{GOOD}')
    assert own_temp in compiled(settings).path.parents
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_compiler_reads_nothing_and_speaks_english(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    own_input = os.dup(0)
    os.dup2(reading, 0)
    try:
        text = failure(fake(tmp_path, 'cat; echo "$LC_ALL $TMPDIR"; exit 1', timeout_s=20.0))
    finally:
        os.dup2(own_input, 0)
        for number in (reading, writing, own_input):
            os.close(number)
    assert re.search(rf"    C {tmp_path}/cache/\.tmp-.*/scratch$", text)


# Row 52: the compiler is missing, or hangs


def without_compilers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", str(folder))
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ziglang" else find(name)
    )


def test_no_compiler_is_an_error_with_three_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_compilers(monkeypatch, tmp_path)
    with pytest.raises(CompilerNotFoundError, match=r"no C\+\+ compiler") as caught:
        compiled(settings_of(tmp_path))
    for way_out in ("install g++", 'pip install "ark_dist[toolchain]"', 'device="numpy"'):
        assert way_out in str(caught.value)


def test_compilers_are_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_compilers(monkeypatch, tmp_path)
    for name, kind in (("clang++", "clang"), ("g++", "gcc")):
        (tmp_path / name).write_text("#!/bin/sh\necho version 7\n")
        (tmp_path / name).chmod(0o755)
        found = compile.find_compiler(settings_of(tmp_path))
        assert (found.command, found.kind) == ((str(tmp_path / name),), kind)
        assert compile.compiler_version(found) == "version 7"
    asked = compile.find_compiler(settings_of(tmp_path, "clang++ --target='a b'"))
    assert asked.command == (str(tmp_path / "clang++"), "--target=a b")


@pytest.mark.parametrize(
    ("command", "error", "text"),
    [
        ("no-such-compiler -x", CompilerNotFoundError, "'no-such-compiler' is no program on PATH"),
        ("'g++", ValueError, "ARK_DIST_CXX is .*No closing quotation"),
        ("  ", ValueError, "ARK_DIST_CXX is '  '; it must be a compiler's command"),
    ],
)
def test_a_compiler_that_was_asked_for_is_never_replaced_by_another(
    tmp_path: Path, command: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        compile.find_compiler(settings_of(tmp_path, command))


def test_a_version_that_is_not_told_is_unknown(tmp_path: Path) -> None:
    for body in ("exit 1", "exit 0"):
        found = compile.find_compiler(fake(tmp_path, f"# {body}\n{body}"))
        assert compile.compiler_version(found) == "unknown"


def test_a_compiler_that_hangs_is_ended_with_all_its_processes(tmp_path: Path) -> None:
    body = f"sleep 999 & echo $$ $! > {tmp_path}/pids\necho started\nwait"
    text = failure(fake(tmp_path, body, timeout_s=0.5))
    assert "the compiler did not end in 0.5 s (ARK_DIST_COMPILE_TIMEOUT_S)" in text
    assert text.endswith("started")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10.0
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(is_running(pid) for pid in pids)
    assert not list((tmp_path / "cache").glob(".tmp-*"))


def test_an_interrupted_compilation_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]  # generic in stubs alone
        def wait(self, timeout: float | None = None) -> int:
            while not (tmp_path / "pids").exists():
                time.sleep(0.01)
            if timeout != compile.KILL_TIMEOUT_S:
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    body = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pids; exec sleep 999"
    with pytest.raises(KeyboardInterrupt):
        compiled(fake(tmp_path, body))
    assert not is_running(int((tmp_path / "pids").read_text()))


# Row 53: the entry is damaged


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "other architecture", "swap"])
def test_a_damaged_library_is_compiled_again_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    settings = fake(tmp_path, GOOD)
    path = compiled(settings).path
    data = bytearray(good := path.read_bytes())
    data[70 if damage == "flip" else 18] ^= 0x40
    other = compiled(settings, TEXT + "//").path.read_bytes()
    damaged = {"truncate": good[:-9], "empty": b"", "swap": other}.get(damage, bytes(data))
    path.write_bytes(damaged)
    binary = compiled(settings)
    assert (binary.is_cached, binary.path.read_bytes()) == (False, good)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert len(calls(tmp_path)) == 3


# Row 55: the key covers every input

RECIPE = compile.Recipe(
    text="int a;",
    language="c++",
    isa="avx2",
    machine="x86_64",
    compiler="g++ 1 2",
    flags=("-O3", "-mavx2"),
    features=("avx2", "fma"),
    ark_version="1.0",
)
CHANGES: dict[str, object] = {
    "text": "int b;",
    "language": "cuda",
    "isa": "avx512",
    "machine": "aarch64",
    "compiler": "g++ 1 3",
    "flags": ("-O3 -mavx2",),
    "features": ("avx2",),
    "ark_version": "1.1",
    "cache_format": cache.FORMAT + 1,
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(compile.Recipe)])
def test_every_input_changes_the_key(name: str) -> None:
    changed = dataclasses.replace(RECIPE, **{name: CHANGES[name]})  # type: ignore[arg-type]  # by name
    assert changed.key() != RECIPE.key()
    assert dataclasses.replace(changed, **{name: getattr(RECIPE, name)}).key() == RECIPE.key()
    assert re.fullmatch("[0-9a-f]{64}", changed.key())


def test_what_the_machine_offers_reaches_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = fake(tmp_path, GOOD)
    keys = {compiled(settings).key}
    keys.add(compiled(settings, TEXT + " ").key)
    monkeypatch.setattr(compile, "VERSION", "2.0")
    keys.add(compiled(settings).key)
    monkeypatch.setattr(compile, "BASE_FLAGS", (*compile.BASE_FLAGS, "-g"))
    keys.add(compiled(settings).key)
    monkeypatch.setattr(cpuinfo, "used_features", lambda isa: ("new",))
    keys.add(compiled(settings).key)
    os.utime(tmp_path / "fake-c++", ns=(1, 1))
    keys.add(compiled(settings).key)
    assert len(keys) == len(calls(tmp_path)) == 6
    assert compiled(settings).is_cached


def test_a_wrapped_compiler_counts_for_the_key_too(tmp_path: Path) -> None:
    wrapped = tmp_path / "wrapped"
    wrapped.write_text("one")
    wrapped.chmod(0o755)
    settings = settings_of(tmp_path, f"/usr/bin/env {wrapped}")
    before = compile.find_compiler(settings).version
    wrapped.write_text("another")
    assert compile.find_compiler(settings).version != before


# Row 57: killed in the middle

VICTIM = """
import sys
from pathlib import Path
from ark_dist.core.settings import read_settings
from ark_dist.core.source import Source
from ark_dist.launch.compile import compile_source

settings = read_settings({"ARK_DIST_CACHE_DIR": sys.argv[1], "ARK_DIST_CXX": sys.argv[2]})
compile_source(Source("toy", "c++", sys.argv[3]), isa="portable", settings=settings)
"""


def test_a_compilation_killed_in_the_middle_does_not_stop_the_next(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # the first run says so and waits; the orphan ends when the test closes its end of the FIFO
    hang = f"[ -e {tmp_path}/again ] || {{ touch {tmp_path}/again; echo > {fifo}; cat {fifo}; }}"
    settings = fake(tmp_path, f"{hang}\n{GOOD}")
    command = [sys.executable, "-c", VICTIM, str(settings.cache_dir), str(settings.compiler), TEXT]
    victim = subprocess.Popen(command, cwd=REPOSITORY)
    try:
        assert fifo.read_text() == "\n"
    finally:
        victim.kill()
        victim.wait()
    binary = compiled(settings)
    assert (binary.is_cached, len(calls(tmp_path))) == (False, 2)
    assert compiled(settings).is_cached
    with fifo.open("w"):
        pass


# Rows 63 and 67, and what is asked for when nothing goes wrong


@pytest.mark.parametrize(
    "name",
    ['"; system("touch pwned"); //', "a\n$(touch pwned)", "n" * 10_000, "\u202eこんにちは🦊\udcff"],
)
def test_a_hostile_name_reaches_no_command_and_stays_on_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text = failure(fake(tmp_path, "exit 1"), name)
    assert len(text.splitlines()[0]) < 400
    assert "isa portable" in text.splitlines()[0]
    settings = fake(tmp_path, GOOD)
    first = compiled(settings, name=name)
    assert compiled(settings, name="plain").path == first.path
    assert not (tmp_path / "pwned").exists()
    assert name not in (tmp_path / "calls").read_bytes().decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("jump_s", [-1e9, 1e9])
def test_a_clock_that_jumps_does_not_end_a_compilation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    now = time.time
    jumps = iter(range(1, 1_000_000))
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps) * jump_s)
    settings = fake(tmp_path, f"sleep 0.1; {GOOD}")
    assert not compiled(settings).is_cached
    assert compiled(settings).is_cached


def test_the_source_is_announced_before_each_compilation_and_on_each_hit(tmp_path: Path) -> None:
    settings = fake(tmp_path, GOOD)
    seen: list[tuple[Path, str, bool]] = []

    def note(path: Path) -> None:
        seen.append((path, path.read_text(), (tmp_path / "calls").exists()))

    source = Source("toy", "c++", TEXT)
    binary = compile.compile_source(source, isa="portable", settings=settings, on_compile=note)
    compile.compile_source(source, isa="portable", settings=settings, on_compile=note)
    assert seen == [(binary.source_path, TEXT, False), (binary.source_path, TEXT, True)]
    assert binary.source_path.read_text() == TEXT


def test_other_languages_and_unknown_isas_are_refused(tmp_path: Path) -> None:
    settings = fake(tmp_path, GOOD)
    with pytest.raises(ValueError, match=r"language is 'cuda'; compile_source takes 'c\+\+'"):
        compile.compile_source(Source("a", "cuda", ""), isa="portable", settings=settings)
    with pytest.raises(ValueError, match="isa is 'native'; it must be one of portable, avx2"):
        compile.compile_source(Source("a", "c++", ""), isa="native", settings=settings)


@needs_gcc
def test_gcc_makes_a_library_that_outlives_its_entry(tmp_path: Path) -> None:
    text = TEXT + 'extern "C" float root(float x) { return __builtin_expf(x); }\n'
    settings = settings_of(tmp_path, "g++")
    binary = compiled(settings, text)
    library = compile.load_library(binary)
    assert cache.CompileCache(settings.cache_dir).clear() == 1
    library.root.restype = ctypes.c_float
    library.root.argtypes = [ctypes.c_float]
    assert (library.add(2, 3), library.root(0.0)) == (5, 1.0)


def test_a_library_that_is_gone_is_an_error(tmp_path: Path) -> None:
    settings = fake(tmp_path, GOOD)
    binary = compiled(settings)
    assert cache.CompileCache(settings.cache_dir).clear() == 1
    with pytest.raises(CacheError, match=r"kernel\.so can't be loaded: .*; compile it again"):
        compile.load_library(binary)


@needs_gcc
def test_a_real_error_points_into_the_kept_source(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"kernel\.cpp:2:\d+: error: ") as caught:
        compiled(settings_of(tmp_path, "g++"), "int a;\nint b = no_such_name;\n")
    assert str(caught.value).count("-nostdlib++") <= 1


@needs_gcc
@needs_x86
@pytest.mark.parametrize("isa", ISAS)
def test_gcc_knows_the_flags_of_every_isa(tmp_path: Path, isa: str) -> None:
    settings = settings_of(tmp_path, "g++")
    source = Source("toy", "c++", TEXT)
    assert not compile.compile_source(source, isa=isa, settings=settings).is_cached
    assert compile.compile_source(source, isa=isa, settings=settings).is_cached


def test_zig_makes_a_library_for_the_isa_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ziglang")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    wide = "\n#ifdef __AVX2__\n#error the CPU was looked at\n#endif\n"
    settings = settings_of(tmp_path)
    assert compile.find_compiler(settings).kind == "zig"
    assert compile.load_library(compiled(settings, TEXT + wide)).add(2, 3) == 5


# The CPU's features

FEATURES = {
    "portable": frozenset({"sse2"}),
    "avx2": frozenset({"avx2", "fma", "f16c", "bmi2"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}),
    "amx": frozenset({"amx_tile", "amx_bf16"}),
}


def up_to(isa: str) -> frozenset[str]:
    return frozenset().union(*(FEATURES[step] for step in ISAS[: ISAS.index(isa) + 1]))


@pytest.mark.parametrize("isa", ISAS)
def test_the_best_isa_is_the_highest_whose_needs_are_all_there(isa: str) -> None:
    have = up_to(isa)
    assert cpuinfo.best_isa(features=have) == isa
    assert cpuinfo.can_run(isa, features=have)
    for missing in cpuinfo.NEEDS[isa]:
        assert ISAS.index(cpuinfo.best_isa(features=have - {missing})) < ISAS.index(isa)


@pytest.mark.parametrize(("is_granted", "best"), [(True, "amx"), (False, "avx512")])
def test_amx_is_used_where_linux_grants_it(
    is_granted: bool, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpuinfo, "cpu_features", lambda: up_to("amx"))
    monkeypatch.setattr(cpuinfo, "is_amx_granted", lambda: is_granted)
    assert cpuinfo.best_isa() == best


@needs_x86
def test_flags_are_explicit_and_optional_ones_follow_the_cpu() -> None:
    assert cpuinfo.isa_flags("portable") == ()
    flags = cpuinfo.isa_flags("amx", features=up_to("amx"))
    assert {"-mavx2", "-mfma", "-mbmi2", "-mavx512vl", "-mavx512bf16", "-mamx-int8"} <= set(flags)
    assert not {"-mbmi", "-mavx512fp16", "-march=native"} & set(flags)
    assert "-mavx512bf16" not in cpuinfo.isa_flags("avx512", features=up_to("avx2"))
    assert cpuinfo.used_features("avx2", features=up_to("amx")) == ("avx2", "bmi2", "f16c", "fma")


def test_another_machine_has_the_portable_bodies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    here = list(os.uname())
    monkeypatch.setattr(os, "uname", lambda: os.uname_result([*here[:4], "aarch64"]))
    assert cpuinfo.isa_flags("portable") == ()
    with pytest.raises(ValueError, match="isa 'avx2' needs an x86_64 machine, this is aarch64"):
        cpuinfo.isa_flags("avx2")


def test_features_are_read_from_the_first_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x86 = ["processor\t: 0\n", "flags\t\t: fpu avx2 fma\n", "flags\t\t: other\n"]
    assert cpuinfo.parse_features(x86) == {"fpu", "avx2", "fma"}
    assert cpuinfo.parse_features(["Features\t: fp asimd\n"]) == {"fp", "asimd"}
    assert cpuinfo.parse_features([]) == frozenset()
    monkeypatch.setattr(cpuinfo, "CPUINFO", tmp_path / "none")
    assert cpuinfo.cpu_features.__wrapped__() == frozenset()
    assert cpuinfo.best_isa() in ISAS
