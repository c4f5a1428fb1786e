"""Programs for a GPU are compiled ahead of the tests that run them."""

from pathlib import Path

import pytest

from ark_dist.core.errors import CompilerNotFoundError
from ark_dist.core.settings import read_settings
from ark_dist.launch.nvrtc import compile_cuda, find_nvrtc
from tests.cuda_programs import PARTS, some_operators
from tests.gpu_compile import compiling_ahead, random_source
from tests.operator_cases import TESTED

try:
    find_nvrtc()
except CompilerNotFoundError as error:
    pytest.skip(str(error), allow_module_level=True)

LIMIT_S = 120


def test_what_was_compiled_ahead_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARK_DIST_CACHE_DIR", str(tmp_path))
    arguments = (2, 3, "sm_90a")
    with compiling_ahead([(random_source, arguments)], "sm_90a") as under_way:
        for compiled in under_way:
            compiled.result(timeout=LIMIT_S)
    source = random_source(*arguments)
    assert compile_cuda(source, arch="sm_90a", settings=read_settings())[0].is_cached


def test_the_parts_are_all_operators() -> None:
    names = [name for part in range(PARTS) for name in some_operators("fp32", part)]
    assert len(names) == len({*names})
    assert {*names} <= {*TESTED}
    assert len(names) > len(TESTED) // 2
