"""The environment is read in one place, and a value that can't be used is named."""

from pathlib import Path

import pytest

from ark_dist.core.errors import ConfigError
from ark_dist.core.settings import ISAS, read_settings


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = read_settings({})
    assert settings.cache_dir is None
    assert settings.compiler is None
    assert settings.isa is None
    assert settings.worker_count is None
    assert settings.timeout_s == 60.0
    assert settings.device is None
    assert settings.log_level == "INFO"
    assert settings.log_dir is None
    assert settings.nccl is None
    assert settings.has_plan_cache
    assert settings.faults == ()


def test_every_variable_is_taken() -> None:
    settings = read_settings(
        {
            "ARK_DIST_CACHE_DIR": "/some/where",
            "ARK_DIST_CXX": "clang++ -v",
            "ARK_DIST_COMPILE_TIMEOUT_S": "7.5",
            "ARK_DIST_ISA": "avx2",
            "ARK_DIST_WORKERS": "3",
            "ARK_DIST_TIMEOUT_S": "0.25",
            "ARK_DIST_DEVICE": "numpy",
            "ARK_DIST_LOG": "debug",
            "ARK_DIST_LOG_DIR": "/logs",
            "ARK_DIST_NCCL": "/lib/libnccl.so.2",
            "ARK_DIST_PLAN_CACHE": "0",
            "ARK_DIST_FAULT": "run,kind=raise",
        }
    )
    assert settings.cache_dir == Path("/some/where")
    assert settings.compiler == "clang++ -v"
    assert settings.compile_timeout_s == 7.5
    assert settings.isa == "avx2"
    assert settings.worker_count == 3
    assert settings.timeout_s == 0.25
    assert settings.device == "numpy"
    assert settings.log_level == "DEBUG"
    assert settings.log_dir == Path("/logs")
    assert settings.nccl == "/lib/libnccl.so.2"
    assert not settings.has_plan_cache
    assert [fault.kind for fault in settings.faults] == ["raise"]


@pytest.mark.parametrize(
    "name",
    [
        *("CACHE_DIR", "CXX", "ISA", "WORKERS", "TIMEOUT_S", "DEVICE", "LOG"),
        *("LOG_DIR", "NCCL", "PLAN_CACHE", "FAULT"),
    ],
)
def test_an_empty_variable_counts_as_unset(name: str) -> None:
    assert read_settings({f"ARK_DIST_{name}": ""}) == read_settings({})


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_taken(isa: str) -> None:
    assert read_settings({"ARK_DIST_ISA": isa}).isa == isa


def test_an_unknown_instruction_set_lists_the_known() -> None:
    text = "^ARK_DIST_ISA is 'sse'; it must be one of portable, avx2, avx512, amx$"
    with pytest.raises(ValueError, match=text):
        read_settings({"ARK_DIST_ISA": "sse"})


@pytest.mark.parametrize("name", ["WORKERS", "TIMEOUT_S", "COMPILE_TIMEOUT_S"])
@pytest.mark.parametrize("value", ["x", "0", "-1", "nan", "1e"])
def test_a_number_that_is_none_names_its_variable(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^ARK_DIST_{name} is '{value}'; it must be a"):
        read_settings({f"ARK_DIST_{name}": value})


@pytest.mark.parametrize("value", ["0.5", "1.5", "inf"])
def test_a_worker_count_must_be_a_whole_number(value: str) -> None:
    with pytest.raises(ValueError, match=f"^ARK_DIST_WORKERS is '{value}'; it must be a whole"):
        read_settings({"ARK_DIST_WORKERS": value})


def test_a_bad_variable_is_a_configuration_error_too() -> None:
    with pytest.raises(ConfigError):
        read_settings({"ARK_DIST_TIMEOUT_S": "soon"})
