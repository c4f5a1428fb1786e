"""The built wheel, installed in a clean environment and used from elsewhere, works and is whole."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUILD_LIMIT_S = 300
SMOKE_LIMIT_S = 300  # a cold compile with ziglang included
NOT_SOURCE = (".*", "__pycache__", "build", "dist", "*.egg-info")
DATA = {".py", ".h", ".cuh", ".typed", ".sbatch", ".hosts"}

SMOKE = """\
import sys

import numpy as np

import ark_dist as ark

device, site = sys.argv[1:]
assert ark.__file__.startswith(site), f"{ark.__file__} is not the wheel's, in {site}"

model = ark.Model()
x = model.tensor(ark.Dims(32,), ark.TensorType.FP16)
y = model.add(x, x)
exe = ark.Executor(0, 0, 1, model, "smoke", device=device)
exe.compile()
a = np.arange(32, dtype=np.float16)
exe.tensor_memcpy_host_to_device(x, a)
exe.launch()
exe.run(1)
exe.stop()
out = np.zeros_like(a)
exe.tensor_memcpy_device_to_host(out, y)
np.testing.assert_array_equal(out, a + a)  # integers below 2048 are exact in fp16
print("smoke:", device, "is right")
"""


def run(command: list[str | Path], cwd: Path, limit_s: int, **variables: str) -> str:
    """Run a command without this process's PYTHONPATH and return its output; fail with it shown."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        timeout=limit_s,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def dist_name(wheel: Path) -> str:
    """Read the name and version that a wheel's file name begins with: `ark_dist-0.1.0`."""
    return "-".join(wheel.name.split("-")[:2])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, since setuptools leaves its work beside the source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    run([*build, "--outdir", folder, source], folder, BUILD_LIMIT_S)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel in a new environment that sees the dependencies of this one."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run([python, "-c", script], folder, BUILD_LIMIT_S).strip())
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(paths)))
    # --ignore-installed: the outer environment may hold an ark_dist of its own.
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--ignore-installed"]
    run([python, *install, wheel], folder, BUILD_LIMIT_S)
    return python


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: Path) -> None:
    expected = {
        str(Path(folder, name).relative_to(ROOT))
        for folder, _, names in os.walk(ROOT / "ark_dist", followlinks=True)
        for name in names
        if Path(name).suffix in DATA
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = {name for name in names if ".dist-info/" not in name}
    assert ours == expected
    assert "ark_dist/py.typed" in ours
    assert any(name.startswith("ark_dist/kernels/ops/") and name.endswith(".h") for name in ours)
    assert {name.split("/")[0] for name in names - ours} == {f"{dist_name(wheel)}.dist-info"}
    assert f"{dist_name(wheel)}.dist-info/licenses/LICENSE" in names


@pytest.mark.parametrize("device", ["numpy", "cpu"])
def test_the_installed_wheel_runs_the_model_of_the_readme(
    device: str, clean_python: Path, tmp_path: Path
) -> None:
    program = tmp_path / "smoke.py"
    program.write_text(SMOKE)
    site = str(clean_python.parents[1])
    cache = str(tmp_path / "cache")
    command: list[str | Path] = [clean_python, program, device, site]
    output = run(command, tmp_path, SMOKE_LIMIT_S, ARK_DIST_CACHE_DIR=cache)
    assert f"smoke: {device} is right" in output
