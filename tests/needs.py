"""Say what an interpreter lacks for a command of ./dev: `python tests/needs.py COMMAND`.

`./dev` asks this where it may install nothing. It begins with nothing but Python, so it imports
what is not Python's own only to see whether that works.
"""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

# Packages that are imported by another name.
MODULES = {"pytest-xdist": "xdist"}
DEPENDENCIES = (
    *("numpy", "ml_dtypes", "msgpack", "safetensors", "mpi4py", "platformdirs", "filelock"),
    *("typer", "rich"),
)
MODELS = ("tokenizers", "gguf", "jinja2")
# The tests of a GPU need less than all tests do.
GPU_TESTS = ("pytest", "pytest-timeout", *MODELS)
TESTS = (*(*GPU_TESTS, "pytest-xdist", "hypothesis", "coverage", "build", "setuptools", "tomli"),)
MPIRUN, COMPILER, NVRTC, CUPY = "mpirun", "a C++ compiler", "NVRTC", "cupy"
FOLDER = "the folder tests"
COMMANDS: dict[str, tuple[str, ...]] = {
    "demo": (*DEPENDENCIES, *MODELS, MPIRUN, COMPILER),
    "test": (FOLDER, *DEPENDENCIES, *TESTS, MPIRUN, COMPILER),
    "bench": (*DEPENDENCIES, MPIRUN, COMPILER),
    "lint": (FOLDER, *DEPENDENCIES, *TESTS, "ruff", "mypy"),
    "generate": DEPENDENCIES,
    "gpu": (FOLDER, *DEPENDENCIES, *GPU_TESTS, CUPY, NVRTC),
}
REFUSED = 78
HERE = Path(__file__).resolve().parent


def _folder() -> str:
    """A package named tests comes before a folder without __init__.py, wherever they are."""
    found = importlib.util.find_spec("tests")
    if found is None or found.origin is None or Path(found.origin).parent == HERE:
        return ""
    return f"{found.origin} hides it: an empty tests/__init__.py here comes before that one"


def _mpirun() -> str:
    return "" if shutil.which("mpirun") else "mpirun is not on PATH: the wheel mpich brings one"


def _compiler() -> str:
    names = (os.environ.get("ARK_DIST_CXX", "g++").split()[0], "clang++")
    if any(shutil.which(name) for name in names) or not lack("ziglang"):
        return ""
    return f"{' and '.join(names)} are not on PATH: the wheel ziglang brings one"


def _cupy() -> str:
    reason = _import_error("cupy")
    return f"{reason}: the wheel cupy-cuda13x, or cupy-cuda12x, as the driver is" if reason else ""


def _nvrtc() -> str:
    """Whether it can be loaded; what loads it may lack packages, which are named already."""
    try:
        from ark_dist.launch.nvrtc import find_nvrtc

        find_nvrtc()
    except ImportError:
        return ""
    except Exception as error:
        return f"{error}: the wheel nvidia-cuda-nvrtc, or nvidia-cuda-nvrtc-cu12"
    return ""


# What is not one package.
CHECKS: dict[str, Callable[[], str]] = {
    FOLDER: _folder,
    MPIRUN: _mpirun,
    COMPILER: _compiler,
    NVRTC: _nvrtc,
    CUPY: _cupy,
}


def lack(need: str) -> str:
    """Say why a need can't be met, or ""."""
    if need in CHECKS:
        return CHECKS[need]()
    return _import_error(MODULES.get(need, need.replace("-", "_")))


def _import_error(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # a package may be broken in any way
        return f"{type(error).__name__}: {error}"
    return ""


def report(command: str, lacks: dict[str, str]) -> str:
    """What is missing for a command, and the ways out."""
    packages = " ".join(name for name in lacks if name not in CHECKS)
    install = f"-m pip install {packages}" if packages else ""
    lines = [
        f"./dev {command}: {sys.executable}, Python {platform.python_version()}, lacks",
        *(f"  {name}: {reason}" for name, reason in lacks.items()),
    ]
    if packages:
        lines += [
            f"install that where it may be: {sys.executable} {install}",
            "or, without a registry: `pip download` it elsewhere, and here `pip install --no-index",
            "--no-deps --target FOLDER WHEELS` and FOLDER on PYTHONPATH",
        ]
    return "\n".join([*lines, "or unset DEV_PYTHON: ./dev makes .venv with all that it needs"])


def main(arguments: Sequence[str]) -> int:
    """Check a command's needs; print what is missing to stderr."""
    (command,) = arguments
    lacks = {need: reason for need in COMMANDS[command] if (reason := lack(need))}
    if lacks:
        print(report(command, lacks), file=sys.stderr)
    return REFUSED if lacks else 0


if __name__ == "__main__":
    with suppress(ValueError):
        sys.path.remove(str(HERE))  # modules of tests are no top-level ones
    sys.exit(main(sys.argv[1:]))
