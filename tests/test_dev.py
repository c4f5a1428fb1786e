"""`./dev` with an interpreter that is used as it is: what it checks, and that it makes nothing."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli

from ark_dist.core.settings import child_environment
from tests import needs
from tests.gpu_stand_ins import GPU, script

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 60


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with ./dev and what it needs to look at an interpreter."""
    tree = tmp_path / "tree"
    (tree / "tests").mkdir(parents=True)
    shutil.copy2(ROOT / "dev", tree)
    shutil.copy2(ROOT / "tests" / "needs.py", tree / "tests")
    for name in ("ark_dist", "comm", "kernels", "launch", "scheduler"):
        (tree / name).symlink_to(ROOT / name)
    return tree


def dev(tree: Path, python: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tree / "dev", *words],
        env=child_environment(DEV_PYTHON=python, PYTHONPATH=""),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_the_interpreter_is_used_and_nothing_is_installed(tree: Path, tmp_path: Path) -> None:
    text = f'case "$*" in *ark_dist.*) echo "ran $*";; *) exec {sys.executable} "$@";; esac'
    done = dev(tree, str(script(tmp_path / "python", text)), "generate", "--check")
    assert (done.returncode, done.stdout) == (0, "ran -m ark_dist.kernels.generate --check\n"), done
    assert not (tree / ".venv").exists()


def test_what_the_interpreter_lacks_is_named_with_the_way_out(tree: Path, tmp_path: Path) -> None:
    # -S: without any installed package.
    done = dev(tree, str(script(tmp_path / "bare", f'exec {sys.executable} -S "$@"')), "generate")
    assert done.returncode == 78
    assert "  numpy: ModuleNotFoundError: No module named 'numpy'\n" in done.stderr
    packages = " ".join(needs.DEPENDENCIES)
    assert f"-m pip install {packages}\n" in done.stderr
    assert done.stderr.endswith("or unset DEV_PYTHON: ./dev makes .venv with all that it needs\n")
    assert not (tree / ".venv").exists()


def test_the_gpu_is_looked_for_before_the_interpreter(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin")
    script(tmp_path / "nvidia-smi", "exit 9")
    assert "no GPU" in dev(tree, "/nowhere/python", "gpu").stderr
    script(tmp_path / "nvidia-smi", f'echo "{GPU}"')
    done = dev(tree, "/nowhere/python", "gpu")
    assert (done.returncode, done.stdout) == (78, "")
    assert "DEV_PYTHON is /nowhere/python, which is no command" in done.stderr


def test_an_interpreter_that_is_too_old_is_refused(tree: Path, tmp_path: Path) -> None:
    done = dev(tree, str(script(tmp_path / "old", "exit 1")), "generate")
    assert (done.returncode, done.stdout) == (78, "")
    assert "which is no Python 3.10 or newer" in done.stderr


def test_what_the_commands_need_is_what_pyproject_asks_for() -> None:
    project = tomli.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]

    def names(*requirements: str) -> set[str]:
        return {re.split(r"[<>=\[]", text)[0] for text in requirements}

    assert names(*project["dependencies"]) == set(needs.DEPENDENCIES)
    # NVRTC has a check of its own, and what disassembles is left to the tests to miss.
    nvidia = {name for name in names(*extras["test"]) if name.startswith("nvidia-")}
    assert names(*extras["test"]) - nvidia == set(needs.TESTS)
    known = names(*project["dependencies"], *(each for extra in extras.values() for each in extra))
    for command, wanted in needs.COMMANDS.items():
        assert {name for name in wanted if name not in needs.CHECKS} <= known, command
    text = (ROOT / "dev").read_text("utf-8")
    for command in needs.COMMANDS:
        assert re.search(rf"^  {command}\)$", text, re.M), f"./dev has no {command}"
        assert re.search(rf"^  {command}  ", text, re.M), f"./dev help leaves {command} out"
    jobs = set(re.findall(r"^  (\w+)\)$", text, re.M))
    assert jobs == set(needs.COMMANDS)


def test_a_package_that_hides_the_tests_is_named(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "needs.py", "lint"],
        env=child_environment(PYTHONPATH=f"{ROOT}:{tmp_path}"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 78
    hiding = tmp_path / "tests" / "__init__.py"
    assert f"  the folder tests: {hiding} hides it: an empty tests/__init__.py" in done.stderr


def test_a_program_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert needs.lack("mpirun") == "mpirun is not on PATH: the wheel mpich brings one"
    lacks = {"mpirun": needs.lack("mpirun")}
    told = needs.report("bench", lacks)
    assert "pip install" not in told, "a program is no package"
    assert needs.lack("numpy") == ""
