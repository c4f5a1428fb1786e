"""The tutorials run as a user runs them, and print what their documents show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ark_dist.convert.gguf_folder import convert_gguf
from tests.gguf_models import write_gguf
from tests.mpi import run_mpi

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / "examples" / "tutorial"
NUMBER = r"[0-9.e+-]+"
# One bit of float16 just under 4, the largest values that layernorm gives here.
MAX_ERROR = 2.0**-9 * 2


def run(name: str, device: str, folder: Path) -> str:
    """Run a tutorial in an empty folder and return what it prints."""
    done = subprocess.run(
        [sys.executable, TUTORIALS / name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ARK_DIST_DEVICE": device},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout


def test_the_model_tutorial_prints_its_errors(device: str, tmp_path: Path) -> None:
    found = re.fullmatch(
        f"max error:  ({NUMBER}) mean error:  ({NUMBER})\n",
        run("model_tutorial.py", device, tmp_path),
    )
    assert found
    assert float(found[1]) == float(found[2]) == 0


def test_the_module_tutorial_prints_its_sizes_and_errors(device: str, tmp_path: Path) -> None:
    found = re.fullmatch(
        "ARK module test\nbatch_size: 1 seq_len: 64 d_model: 512 d_ff: 2048\n"
        f"max error:  ({NUMBER}) avg error:  ({NUMBER})\n",
        run("module_tutorial.py", device, tmp_path),
    )
    assert found
    assert 0 < float(found[2]) < float(found[1]) <= MAX_ERROR


@pytest.mark.parametrize("name", ["model_tutorial.py", "module_tutorial.py"])
def test_a_tutorial_shows_the_lines_of_its_document(name: str) -> None:
    text = (TUTORIALS / name).read_text()
    lines = {
        "model_tutorial.py": ["ark.init()", 'exe = ark.Executor(0, 0, 1, model, "tutorial_model")'],
        "module_tutorial.py": ["runtime = ark.Runtime()", "ark_model.load_state_dict(state_dict)"],
    }
    for line in lines[name]:
        assert line in text


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", ["mesh.py", "ring.py"])
def test_examples_of_several_ranks_run_on_any_number_of_them(name: str, size: int) -> None:
    done = run_mpi(size, ROOT / "examples" / "ranks" / name, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f" of {size}: ") == size, done.stdout


@pytest.mark.parametrize("size", [1, 2])
def test_stages_take_different_inputs_in_every_iteration(size: int) -> None:
    done = run_mpi(size, ROOT / "examples" / "ranks" / "pipeline.py", timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f" of {size}: ") == size, done.stdout


@pytest.mark.parametrize("size", [1, 2])
def test_a_text_is_written_on_any_number_of_ranks(size: int, tmp_path: Path) -> None:
    convert_gguf(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "tiny", dtype="fp32")
    options = ["--model", str(tmp_path / "tiny"), "--context", "40", "--max-new-tokens", "6"]
    done = run_mpi(size, ROOT / "examples" / "generate.py", "hello w", *options, timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hello w")
    assert re.search(rf"[1-6] tokens, {NUMBER} tokens/s; ranks: {size}\n", done.stderr), done
