"""Plan files: equal after a round trip, and hostile bytes are refused soon (faults 60 and 61)."""

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ark_dist.core.errors import PlanError, PlanFormatError
from ark_dist.core.graph import HOST, Raise
from ark_dist.core.packed import Limits, Table, column
from ark_dist.core.plan import Plan
from ark_dist.core.planfile import (
    MAGIC,
    fingerprint,
    load_plan,
    plan_from_bytes,
    plan_to_bytes,
    save_plan,
)
from ark_dist.core.target import cpu_target, topology_of, wide_target
from ark_dist.scheduler.plan import PlanOptions, make_plan
from tests.plan_models import addition, block, eager, loop, mlp, random_plan, two_methods
from tests.rank_cases import CASES, counting, plans_of

HEAD = MAGIC + b"\x01\x00"
MEGABYTE = 2**20


def small_plans() -> list[Plan]:
    return [
        make_plan(addition(), cpu_target(1)),
        make_plan(loop(), eager(cpu_target(2)), PlanOptions(depth=2)),
        make_plan(two_methods(), eager(cpu_target(2))),
        make_plan(mlp(64), eager(cpu_target(2)), rank=1, topology=topology_of((0,) * 4)),
        make_plan(block(), eager(wide_target(8))),
        # Exports, peers' buffers, handshakes, and requests to the host.
        *(communicating(transport) for transport in ("peer", "proxy")),
    ]


def communicating(transport: str) -> Plan:
    """The plan of rank 1 of 2."""
    plans = plans_of(lambda rank: counting(CASES["ring"], rank, 2)[0], 2, transport=transport)
    return plans[1]


PLANS = small_plans()
FILES = [plan_to_bytes(plan) for plan in PLANS]


def body(data: bytes) -> dict[str, Any]:
    decoded = msgpack.unpackb(data[len(HEAD) :])
    assert isinstance(decoded, dict)
    return decoded


def rename(value: dict[str, Any], old: str, new: str) -> None:
    strings = value["tables"]["strings"]
    strings[strings.index(old)] = new


def refused(data: bytes, *, limits: Limits | None = None) -> str:
    with pytest.raises(PlanFormatError) as caught:
        plan_from_bytes(data, limits=limits)
    return str(caught.value)


@pytest.mark.parametrize("index", range(len(PLANS)))
def test_a_plan_is_equal_after_a_round_trip(index: int) -> None:
    again = plan_from_bytes(FILES[index])
    assert again == PLANS[index]
    assert plan_to_bytes(again) == FILES[index]


@pytest.mark.parametrize("seed", range(40))
def test_random_plans_are_equal_after_a_round_trip(seed: int) -> None:
    plan = random_plan(seed)
    data = plan_to_bytes(plan)
    assert plan_from_bytes(data) == plan
    assert plan_to_bytes(plan_from_bytes(data)) == data


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    save_plan(PLANS[0], path)
    assert load_plan(path) == PLANS[0]
    assert path.read_bytes() == FILES[0]
    with pytest.raises(PlanError, match="can't be written"):
        save_plan(replace(PLANS[0], rank=None), path)  # type: ignore[arg-type]  # on purpose
    assert [p.name for p in tmp_path.iterdir()] == ["a.plan"], "no temporary file is left"
    assert load_plan(path) == PLANS[0]
    with pytest.raises(OSError, match="missing"):
        load_plan(tmp_path / "missing")


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.plan"
    save_plan(PLANS[0], path)

    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_plan(PLANS[1], path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.plan"]
    assert path.read_bytes() == FILES[0]


def test_fingerprints_tell_plans_apart() -> None:
    prints = [fingerprint(plan) for plan in PLANS]
    assert len(set(prints)) == len(PLANS)
    assert prints == [fingerprint(plan) for plan in small_plans()], "the same on every run"
    assert all(len(text) == 64 for text in prints)


def test_what_ranks_share_is_in_the_file() -> None:
    shared, asked = (plan_from_bytes(data) for data in FILES[-2:])
    assert {(b.export, b.peer) for b in shared.buffers if b.kind == "peer"} == {
        ("forward/0>1.0#0:send.0", 0)
    }
    assert {b.export for b in shared.buffers if b.kind != "peer"} == {"", "forward/1>0.0#0:send.1"}
    nodes = shared.methods[0].nodes
    assert [n.waits for n in nodes if n.waits] == [
        ("forward/0>1.0#0:send.ready.0",),
        ("forward/1>0.0#0:send.taken.0",),
    ]
    assert [n.raises for n in nodes if n.raises] == [
        (Raise(0, "forward/1>0.0#0:send.ready.1"),),
        (Raise(0, "forward/0>1.0#0:send.taken.1"),),
    ]
    assert all(n.takes for n in nodes if n.raises and ".taken." in n.raises[0].flag)
    raised = {item for n in asked.methods[0].nodes for item in n.raises}
    assert {item.rank for item in raised} == {HOST}
    assert all(item.flag.endswith(".ask") for item in raised)


def test_attributes_keep_their_types() -> None:
    plan = PLANS[3]
    norm = next(n for n in plan.methods[0].nodes if n.op == "layernorm")
    for eps in (1, 1.0):
        nodes = list(plan.methods[0].nodes)
        nodes[norm.id] = replace(norm, attrs=(("axis", -1), ("eps", eps)))
        method = replace(plan.methods[0], nodes=tuple(nodes))
        again = plan_from_bytes(plan_to_bytes(replace(plan, methods=(method,))))
        assert type(dict(again.methods[0].nodes[norm.id].attrs)["eps"]) is type(eps)


def test_a_plan_that_can_not_be_written_says_why() -> None:
    plan = PLANS[0]
    first, *rest = plan.buffers
    with pytest.raises(PlanError, match="buffer 0 has id 5"):
        plan_to_bytes(replace(plan, buffers=(replace(first, id=5), *rest)))
    with pytest.raises(PlanError, match="2 places, 3 buffers"):
        plan_to_bytes(replace(plan, places=plan.places[1:]))
    with pytest.raises(PlanError, match=r"does not fit a column"):
        plan_to_bytes(replace(plan, buffers=(replace(first, slots=-1), *rest)))


def test_another_version_is_refused_with_both_versions() -> None:
    text = refused(MAGIC + b"\x07\x00" + FILES[0][len(HEAD) :])
    assert "format version 7, this ark_dist reads version 1" in text


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "the plan ends at byte 0, where a value should start"),
    "depth": (b"\x91" * 15_000_000, "nested deeper than 32"),
    "deep maps": (b"\x81\xa1a" * 100, "nested deeper than 32"),
    "flat": (b"\x90" * 15_000_000, "the rest is not ours"),
    "length": (b"\xdd\xff\xff\xff\xff", "the plan ends at byte 5, in a value that goes on to"),
    "map length": (b"\xdf\xff\xff\xff\xff", "in a value that goes on to"),
    "str length": (b"\xdb\xff\xff\xff\xff", "in a value that goes on to"),
    "bin length": (b"\xc6\xff\xff\xff\xffabc", "in a value that goes on to"),
    "cut length": (b"\xdd\xff", "in a value that goes on to"),
    "many": (b"\xdd\x00\xd5\x9f\x80" + b"\x90" * 14_000_000, "more than 300000 msgpack values"),
    "just few enough": (b"\xdd\x00\x04\x93\xd0" + b"\xa2ab" * 299_984, "it must be a map"),
    "ext": (b"\xc7\x01\x01a", "a value of type 0xc7 at byte 0"),
    "fixext": (b"\xd4\x01a", "a value of type 0xd4"),
    "never used": (b"\xc1", "a value of type 0xc1"),
    "duplicates": (b"\x82\xa1a\x01\xa1a\x02", "a map with one key twice"),
    "key": (b"\x81\x01\x01", "not allowed for map key"),
    "unhashable key": (b"\x81\x90\x01", "no valid msgpack"),
    "utf-8": (b"\xa1\xff", "no valid msgpack"),
    "array": (b"\x90", "the plan is list of 0; it must be a map"),
    "number": (b"\x07", "the plan is 7; it must be a map"),
    "empty": (b"\x80", "tables is missing"),
    "extra": (FILES[0][len(HEAD) :] + b"\x00", "the rest is not ours"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused_soon(name: str) -> None:
    data, text = HOSTILE[name]
    started = time.process_time()
    assert text in refused(HEAD + data)
    assert time.process_time() - started < 1.0, "seconds of processor time"


@pytest.mark.parametrize("name", ["depth", "flat", "many", "just few enough", "length"])
def test_hostile_bytes_take_little_memory(name: str) -> None:
    data = HEAD + HOSTILE[name][0]
    tracemalloc.start()
    try:
        refused(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * MEGABYTE


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "long.plan"
    with path.open("wb") as file:
        file.write(HEAD)
        file.truncate(2**40)  # sparse
    with pytest.raises(PlanFormatError, match="at most 16777216 are read"):
        load_plan(path)
    assert "at most 1000 are read" in refused(FILES[1], limits=Limits(size_bytes=1000))


def test_what_is_no_plan_file_is_refused() -> None:
    for data in (b"", b"\x80", b"PK\x03\x04", MAGIC, MAGIC[:5], HEAD[:-1]):
        assert "no ark_dist plan" in refused(data)


FIELDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "text": (lambda b: b.update(name=5), "name is 5; it must be a string"),
    "integer": (lambda b: b.update(rank=1.0), "rank is 1.0; it must be an integer"),
    "nan": (lambda b: b.update(rank=float("nan")), "rank is nan; it must be an integer"),
    "bool": (lambda b: b.update(rank=True), "rank is True; it must be an integer"),
    "negative": (lambda b: b.update(rank=-1), "rank is -1; it must be an integer"),
    "large": (lambda b: b.update(rank=2**64 - 1), "rank is 18446744073709551615; it must be"),
    "extra": (lambda b: b.update(more=1), "'more' is not a field"),
    "missing": (lambda b: b.pop("buffers"), "buffers is missing"),
    "map": (lambda b: b.update(buffers=[]), "buffers is list of 0; it must be a map"),
    "number": (lambda b: b["target"].update(hop_s="x"), "target.hop_s is 'x'; it must be a float"),
    "array": (lambda b: b.update(methods={}), "methods is dict of 0; it must be an array"),
    "methods": (lambda b: b.update(methods=[1] * 5000), "methods has 5000 items; at most 4096"),
    "column": (lambda b: b["buffers"].update(slots=[1]), "must be a column of integers"),
    "width": (lambda b: b["buffers"].update(slots=b"\x03abc"), "must be a column of integers"),
    "no width": (lambda b: b["buffers"].update(slots=b""), "must be a column of integers"),
    "rest": (lambda b: b["buffers"].update(slots=b"\x02abc"), "ends 1 bytes into an integer"),
    "count": (lambda b: b["buffers"].update(slots=b"\x01a"), "has 1 items; it must have 3"),
    "below": (lambda b: b["buffers"].update(shape=b"\x01\x63\x63\x63"), "below"),
    "huge": (lambda b: b["buffers"].update(offset=b"\x08" + b"\xff" * 24), "it must be 0 or more"),
    "dtype": (lambda b: rename(b, "fp16", "fp99"), "'fp99' is no dtype"),
    "strings": (lambda b: b["tables"]["strings"].__setitem__(0, 1), "strings[0] is 1; it must be"),
    "blobs": (lambda b: b["tables"].update(blobs=["x"]), "blobs[0] is 'x'; it must be bytes"),
    "attrs": (lambda b: b["tables"].update(attrs=[1]), "attrs[0] is 1; it must be an array"),
    "pair": (lambda b: b["tables"].update(attrs=[[["x"]]]), "attrs[0][0] has 1 items; it must"),
    "value": (lambda b: b["tables"].update(attrs=[[["x", [1.5]]]]), "must hold integers only"),
    "shards": (lambda b: b["tables"].update(shards=[[1]]), "shards[0] is 1; it must be a string"),
    "ragged": (lambda b: b["tables"].update(numbers=[b"\x01"]), "it must be two columns"),
    "lengths": (
        lambda b: b["tables"].update(numbers=[b"\x08" + b"\xff" * 8, b"\x01"]),
        "tables.numbers.lengths[0] is",
    ),
    "items": (
        lambda b: b["tables"].update(numbers=[b"\x01\x05", b"\x01\x05"]),
        "tables.numbers.items has 1 items; it must have 5",
    ),
    "box": (lambda b: b["tables"]["regions"].update(box=b"\x01\0\0\0"), "1 numbers are no box"),
    "stop": (
        lambda b: b["methods"][0].update(stop_task="x"),
        "methods[0].stop_task is 'x'; it must be an integer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_the_wrong_type_or_range_is_named(name: str) -> None:
    change, text = FIELDS[name]
    value = body(FILES[0])
    change(value)
    assert text in refused(HEAD + msgpack.packb(value))


# Of the plan of a rank that communicates.
SHARED_FIELDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "export": (lambda b: b["buffers"].update(export=b"\x01" + b"\xff" * 40), "buffers.export"),
    "peer": (lambda b: b["buffers"].update(peer=b"\x01a"), "buffers.peer has 1 items"),
    "takes": (lambda b: b["methods"][0]["nodes"].update(takes=b""), "nodes.takes is"),
    "waits": (lambda b: b["methods"][0]["nodes"].pop("waits"), "nodes.waits is missing"),
    "raises": (lambda b: b["methods"][0]["nodes"].update(raises=[]), "nodes.raises"),
    "flag": (lambda b: b["tables"]["raises"].update(flag=b"\x02" + b"\xff" * 4), "raises.flag"),
    "rank": (lambda b: b["tables"]["raises"].update(rank=b"\x08" + b"\xff" * 16), "raises.rank"),
}


@pytest.mark.parametrize("name", SHARED_FIELDS)
def test_a_field_of_what_ranks_share_is_checked_too(name: str) -> None:
    change, text = SHARED_FIELDS[name]
    value = body(FILES[-2])
    change(value)
    assert text in refused(HEAD + msgpack.packb(value))


def test_a_plan_whose_ranks_do_not_exist_breaks_a_rule() -> None:
    value = body(FILES[-2])
    peers = value["buffers"]["peer"]
    value["buffers"]["peer"] = peers[:1] + bytes(7 if peer else 0 for peer in peers[1:])
    with pytest.raises(PlanError, match="lies on rank 6 of 2"):
        plan_from_bytes(HEAD + msgpack.packb(value))


def test_lists_that_are_used_again_and_again_are_limited() -> None:
    value = body(FILES[0])
    # One region, 40 times in a list that the one task names: the list is stored once.
    value["tables"]["region_lists"] = [column([40]), column([0] * 40)]
    value["methods"][0]["tasks"].update(reads=column([0]), writes=column([0]))
    data = HEAD + msgpack.packb(value)
    assert "tasks.writes refers to too much: at most 60" in refused(data, limits=Limits(entries=60))
    assert "region_lists.lengths[0] is 40; it must be 0 or more and below 31" in refused(
        data, limits=Limits(entries=30)
    )
    assert "items; it must have at most 2" in refused(FILES[0], limits=Limits(items=2))


def test_a_plan_that_breaks_a_rule_is_refused() -> None:
    value = body(FILES[0])
    value["rank"] = 3
    with pytest.raises(PlanError, match="rank 3 is not one of 1 ranks"):
        plan_from_bytes(HEAD + msgpack.packb(value))


def test_columns_take_the_smallest_width() -> None:
    assert [column([n])[0] for n in (0, 255, 256, 65536, 2**32)] == [1, 1, 2, 4, 8]
    table: Table[str] = Table()
    assert [table.index(x) for x in "abca"] == [0, 1, 2, 0]


def read_or_refuse(data: bytes) -> None:
    """Whatever the bytes are: a plan that can be written again, or one of our errors."""
    try:
        plan = plan_from_bytes(data)
    except (PlanFormatError, PlanError) as error:
        assert str(error)
    else:
        assert isinstance(plan_to_bytes(plan), bytes)


fuzz = settings(
    derandomize=True, max_examples=400, deadline=None, suppress_health_check=list(HealthCheck)
)
which = st.integers(0, len(FILES) - 1)


@fuzz
@given(which, st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_do_no_harm(index: int, flips: list[tuple[int, int]]) -> None:
    data = bytearray(FILES[index])
    for position, value in flips:
        data[len(HEAD) + position % (len(data) - len(HEAD))] = value
    read_or_refuse(bytes(data))


@fuzz
@given(which, st.integers(0), st.integers(0, 40))
def test_cut_bytes_do_no_harm(index: int, start: int, length: int) -> None:
    data = FILES[index]
    start %= len(data)
    read_or_refuse(data[:start])
    read_or_refuse(data[:start] + data[start + length :])


@fuzz
@given(which, st.integers(0), st.binary(max_size=24))
def test_inserted_bytes_do_no_harm(index: int, position: int, extra: bytes) -> None:
    position %= len(FILES[index])
    read_or_refuse(FILES[index][:position] + extra + FILES[index][position:])


@fuzz
@given(which, which, st.integers(0), st.integers(0))
def test_spliced_files_do_no_harm(one: int, two: int, end: int, start: int) -> None:
    first, second = FILES[one], FILES[two]
    read_or_refuse(first[: end % len(first)] + second[start % len(second) :])


@fuzz
@given(st.data(), which)
def test_changed_values_do_no_harm(data: st.DataObject, index: int) -> None:
    """Well-formed files with one value changed: these get past msgpack."""
    value = body(FILES[index])
    here: Any = value
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(here[key], (dict, list)) and here[key]):
            break
        here = here[key]
    if isinstance(here[key], bytes) and len(here[key]) > 1:
        changed = bytearray(here[key])
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        here[key] = bytes(changed)
    else:
        here[key] = data.draw(
            st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(),
                      st.text(max_size=3), st.binary(max_size=9), st.lists(st.integers(0, 9)))
        )  # fmt: skip
    read_or_refuse(HEAD + msgpack.packb(value, unicode_errors="surrogatepass"))
