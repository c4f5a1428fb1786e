"""The sections of `./dev gpu` with stand-ins: tests, figures or tools that fail, hang or lack."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gpu_run import sections
from tests.gpu_run.sanitizer import counted
from tests.gpu_run.sections import Section, Tools, run_figures, run_sanitizer, run_tests
from tests.gpu_run.targets import CASES, TARGETS, check_targets
from tests.gpu_stand_ins import (
    GOOD_TEST,
    LIMIT_S,
    ROWS,
    no_tools,
    outcomes,
    script,
    with_bench,
    with_tests,
)
from tests.mpi import is_running

HANG_S = 2.0


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    return no_tools(tmp_path, monkeypatch)


# --- tests ------------------------------------------------------------------------------------


def test_results_are_counted_and_failures_named_with_the_first_line(tools: Tools) -> None:
    text = """
    def test_good(): pass
    def test_bad(): raise ValueError("one\\ntwo")
    def test_left_out(): pytest.skip("no reason")
    @pytest.mark.xfail
    def test_known(): assert False
    @pytest.fixture
    def broken(): raise KeyError("setup")
    def test_never_called(broken): pass
    """
    section = run_tests(with_tests(tools, text), LIMIT_S)
    assert section["status"] == "failed"
    assert (section["rc"], section["processes"], section["total"]) == (1, 1, 5)
    assert (section["passed"], section["failed"], section["skipped"]) == (1, 2, 1)
    assert section["xfailed"] == 1
    assert section["skips"] == [{"reason": "no reason", "count": 1}]
    bad, never = section["failures"]
    assert bad["name"].endswith("test_stand_in.py::test_bad")
    assert (bad["outcome"], bad["message"]) == ("failed", "ValueError: one")
    assert (never["outcome"], never["message"]) == ("error", "KeyError: 'setup'")


def test_a_test_that_kills_its_process_is_named_and_the_others_run_in_a_new_one(
    tools: Tools,
) -> None:
    text = """
    def test_first(): pass
    def test_crash(): os.abort()
    def test_third(): pass
    """
    section = run_tests(with_tests(tools, text), LIMIT_S)
    assert (section["status"], section["processes"]) == ("failed", 2)
    assert (section["passed"], outcomes(section)) == (2, {"test_crash": "crashed"})
    assert section["failures"][0]["message"] == f"its process ended with {-signal.SIGABRT}"


def test_after_a_fault_of_the_gpu_a_new_process_goes_on(tools: Tools) -> None:
    text = """
    class GpuFaultError(Exception): pass
    lost = []
    def test_fault():
        lost.append(1)
        try:
            raise GpuFaultError("an illegal address")
        except GpuFaultError as error:
            raise RuntimeError("around it") from error
    def test_after(): assert not lost
    """
    section = run_tests(with_tests(tools, text), LIMIT_S)
    assert (section["passed"], outcomes(section)) == (1, {"test_fault": "failed"})
    assert (section["status"], section["processes"]) == ("failed", 2)
    assert "an illegal address" in (tools.logs / "tests.log").read_text()


def test_a_test_that_hangs_is_ended_with_what_it_started(tools: Tools, tmp_path: Path) -> None:
    text = f"""
    def test_hang():
        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
        time.sleep(60)
    def test_after(): pass
    """
    section = run_tests(with_tests(tools, text, test_limit_s=HANG_S), LIMIT_S)
    assert (section["passed"], outcomes(section)) == (1, {"test_hang": "hung"})
    assert section["processes"] == 2
    assert not is_running(int((tmp_path / "pid").read_text()))


def test_a_section_that_runs_out_of_time_keeps_what_it_has(tools: Tools) -> None:
    text = """
    def test_quick(): pass
    def test_slow(): time.sleep(60)
    def test_never(): pass
    """
    section = run_tests(with_tests(tools, text), 5.0)
    assert (section["status"], section["total"], section["passed"]) == ("timeout", 3, 1)
    assert outcomes(section) == {"test_slow": "cut off"}
    assert section["killed"] == "it took more than 5 s"


def test_tests_that_are_all_skipped_are_no_success(tools: Tools) -> None:
    text = """
    def test_one(): pytest.skip("no GPU")
    """
    section = run_tests(with_tests(tools, text), LIMIT_S)
    assert (section["status"], section["rc"], section["skipped"]) == ("failed", 0, 1)


def test_a_file_that_cannot_be_imported_does_not_stop_the_others(
    tools: Tools, tmp_path: Path
) -> None:
    other = tmp_path / "test_other.py"
    other.write_text("import there_is_no_such_module\n")
    tools = with_tests(tools, GOOD_TEST)
    section = run_tests(replace(tools, pytest=(*tools.pytest, str(other))), LIMIT_S)
    assert (section["status"], section["passed"], section["failed"]) == ("failed", 1, 1)
    assert "there_is_no_such_module" in section["failures"][0]["message"]


def test_a_pytest_that_does_not_start_is_a_failure(tools: Tools) -> None:
    section = run_tests(replace(tools, pytest=("/bin/sh", "-c", "echo why >&2; exit 4")), LIMIT_S)
    assert (section["status"], section["rc"], section["processes"]) == ("failed", 4, 1)
    assert section["output_tail"] == "why"


# --- figures ----------------------------------------------------------------------------------


def test_figures_are_compared_with_their_targets(tools: Tools) -> None:
    section = run_figures(with_bench(tools, f"print(json.dumps({ROWS!r}))"), LIMIT_S)
    assert (section["status"], section["rows"], section["cases"]) == ("passed", ROWS, [])
    met = {target["case"]: target["is_met"] for target in section["targets"]}
    assert met == {
        "stream-only": True,
        "hop": True,
        "run(1)+wait": False,
        "llama-1b layer": True,
        "llama-1b layer vs CUDA graph": None,
    }


def test_a_figure_that_is_not_there_is_missed() -> None:
    for found in check_targets([]):
        assert found["found"] is None
        assert found["is_met"] is (False if found["wanted"] is not None else None)
    assert [target.case for target in TARGETS] == [found["case"] for found in check_targets([])]


def test_figures_that_fail_keep_the_rows_told_before_and_get_the_others_one_by_one(
    tools: Tools,
) -> None:
    code = (
        "case = sys.argv[2] if len(sys.argv) > 1 else 'read'\n"
        "row = json.dumps({'case': case, 'ours': 1.0})\n"
        "if case == 'read':\n"
        "    print('gpu:', row, file=sys.stderr); sys.exit('lost after it')\n"
        "if case == 'stream-only': sys.exit('lost again')\n"
        "print(f'[{row}]')"
    )
    section = run_figures(with_bench(tools, code), LIMIT_S)
    assert (section["status"], section["rc"]) == ("failed", 1)
    assert section["output_tail"].endswith("lost after it")
    assert [row["case"] for row in section["rows"]] == ["read", *CASES[2:]]
    codes = {case["case"]: case["rc"] for case in section["cases"]}
    assert codes == {"stream-only": 1, **dict.fromkeys(CASES[2:], 0)}


def test_figures_that_hang_leave_time_for_single_ones(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "WHOLE_SHARE", 0.05)
    code = "if len(sys.argv) == 1: time.sleep(60)\nprint(json.dumps([{'case': sys.argv[2]}]))"
    section = run_figures(with_bench(tools, code), 20.0)
    assert section["status"] == "timeout"
    assert [row["case"] for row in section["rows"]] == [*CASES]


def test_a_benchmark_without_rows_is_no_success(tools: Tools) -> None:
    section = run_figures(tools, LIMIT_S)
    assert (section["status"], section["rc"], section["cases"]) == ("failed", 0, [])


# --- sanitizer --------------------------------------------------------------------------------

MARKED = """
@pytest.mark.sanitizer
def test_marked(): assert os.environ["ARK_DIST_TIMEOUT_S"] == "6000"
def test_not_marked(): assert False
"""
# Its options: --tool T --target-processes all --launch-timeout S --error-exitcode N --log-file F.
SANITIZER = """tool=$2; code=$8; log=${{10}}; shift 10
"$@" || exit $?
{ending}
"""
CLEAN = 'echo "========= ERROR SUMMARY: 0 errors" > "$log"'
DIRTY = """if [ $tool = racecheck ]; then
  echo "========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)" > "$log"
else
  echo "========= ERROR SUMMARY: 2 errors" > "$log"
fi
exit $code"""
REFUSED = 'echo "========= Error: Device not supported. See the documentation" > "$log"; exit 1'


def sanitized(tools: Tools, ending: str, tests: str = MARKED) -> Section:
    program = script(tools.logs.parent / "compute-sanitizer", SANITIZER.format(ending=ending))
    return run_sanitizer(replace(with_tests(tools, tests), sanitizer=str(program)), LIMIT_S)


def test_the_marked_tests_run_under_each_tool_with_long_limits(tools: Tools) -> None:
    section = sanitized(tools, CLEAN)
    assert section["status"] == "passed"
    assert [tool["tool"] for tool in section["tools"]] == ["memcheck", "racecheck", "synccheck"]
    for tool in section["tools"]:
        assert (tool["status"], tool["errors"]) == ("passed", 0)
        assert (tool["total"], tool["passed"], tool["failed"]) == (1, 1, 0)


def test_errors_of_a_tool_are_counted_and_its_report_kept(tools: Tools) -> None:
    section = sanitized(tools, DIRTY)
    assert section["status"] == "failed"
    memcheck, racecheck, _ = section["tools"]
    assert (memcheck["errors"], memcheck["warnings"]) == (2, None)
    assert (racecheck["errors"], racecheck["warnings"]) == (1, 2)
    assert "RACECHECK SUMMARY" in racecheck["output_tail"]


def test_a_device_that_a_tool_does_not_support_is_no_failure(tools: Tools) -> None:
    program = script(tools.logs.parent / "compute-sanitizer", f"log=${{10}}\n{REFUSED}")
    tools = replace(with_tests(tools, MARKED), sanitizer=str(program))
    section = run_sanitizer(tools, LIMIT_S)
    assert section["status"] == "unavailable"
    assert section["tools"][0]["reason"] == "Device not supported. See the documentation"


def test_a_missing_tool_and_missing_marks_are_no_failure(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "SANITIZERS", ("memcheck",))
    lacking = run_sanitizer(tools, LIMIT_S)
    assert lacking["status"] == "unavailable"
    assert lacking["tools"][0]["reason"] == "compute-sanitizer is not there"
    unmarked = sanitized(tools, CLEAN, "def test_plain(): pass\n")
    assert unmarked["status"] == "unavailable"
    assert unmarked["tools"][0]["reason"] == "no test is marked sanitizer"


def test_a_tool_that_dies_or_hangs_says_so(tools: Tools) -> None:
    program = script(
        tools.logs.parent / "compute-sanitizer",
        "case $2 in memcheck) sleep 60;; racecheck) kill -SEGV $$;; *) exit 1;; esac",
    )
    tools = replace(with_tests(tools, MARKED), sanitizer=str(program))
    section = run_sanitizer(tools, 3.0)
    states = [tool["status"] for tool in section["tools"]]
    assert states == ["timeout", "crashed", "crashed"]


def test_summaries_of_several_processes_are_added() -> None:
    assert counted("ERROR SUMMARY: 1 error\n...\nERROR SUMMARY: 4 errors") == (5, None)
    assert counted("no summary") == (None, None)
