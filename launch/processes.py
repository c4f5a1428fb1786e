"""Look at other processes of this host: whether they run, are stopped, or are gone."""

from pathlib import Path

RUNS, STOPPED, GONE = "runs", "is stopped by a signal", "is gone"
_STATE_FIELD, _START_FIELD = 0, 19  # of /proc/PID/stat, after the name, counted from 0
_STOPPED, _ENDED = "T", "ZXx"


def process_state(pid: int, start: int) -> str:
    """RUNS, STOPPED or GONE, for the very process with this pid and start time."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("latin-1")
    except OSError:
        return GONE
    # The name before the last ")" may hold anything.
    fields = text.rpartition(")")[2].split()
    if fields[_STATE_FIELD] in _ENDED or int(fields[_START_FIELD]) != start:
        return GONE
    return STOPPED if fields[_STATE_FIELD] == _STOPPED else RUNS
