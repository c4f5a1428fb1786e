"""The parts of the communicators: rings, labels, flight records, reductions, pieces of messages."""

import re
import threading
from types import SimpleNamespace
from typing import cast

import ml_dtypes
import numpy as np
import pytest

from ark_dist.comm import mpi
from ark_dist.comm.arrays import reduce_in_order
from ark_dist.comm.communicator import Bytes
from ark_dist.comm.endpoint import COLLECTIVE, POINT_TO_POINT, Route
from ark_dist.comm.flight import ENTRY_COUNT, FlightRecord, Label, new_record
from ark_dist.comm.mpi import PIECE_BYTES, MpiEndpoint, MpiRequest
from ark_dist.comm.rings import CONTROL_BYTES, Recv, Ring, Rings
from ark_dist.core.errors import CommMismatch
from tests.mpi import ROOT

LABEL = Label(1, "send", "uint8", 1000)
ROUTE = Route(0, POINT_TO_POINT, 0)


def bytes_of(count: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


def loop(ring_bytes: int) -> Rings:
    """A rank that sends to itself."""
    ring = Ring(np.zeros(CONTROL_BYTES + ring_bytes, np.uint8))
    return Rings({0: ring}, {0: ring})


def receive(talk: Rings, data: Bytes, *, tag: int = 0) -> Recv:
    route = Route(0, POINT_TO_POINT, tag)
    label = Label(1, "recv", "uint8", data.size)
    return talk.recv(Recv(talk, 0, 0, route, (0, POINT_TO_POINT, tag), label, data))


def test_a_ring_keeps_the_bytes_in_order_past_its_end() -> None:
    ring = Ring(np.zeros(CONTROL_BYTES + 100, np.uint8))
    data, found = bytes_of(5000), np.zeros(5000, np.uint8)
    sent = got = 0
    rng = np.random.default_rng(1)
    while got < 5000:
        sent += ring.write(data[sent : sent + int(rng.integers(1, 80))])
        assert 0 <= ring.filled <= 100
        assert ring.room + ring.filled == 100
        got += ring.read(found[got : got + int(rng.integers(1, 80))])
    assert found.tobytes() == data.tobytes()


def test_a_message_larger_than_the_ring_goes_in_parts() -> None:
    talk = loop(256)
    data, found = bytes_of(1000), np.zeros(1000, np.uint8)
    send = talk.send(0, 0, ROUTE, LABEL, data)
    assert not send.test()
    recv = receive(talk, found)
    while not recv.test():
        assert not send.is_done or not recv.is_done
    assert send.test()
    assert found.tobytes() == data.tobytes()


def test_a_withdrawn_send_is_not_sent() -> None:
    talk = loop(256)
    first = talk.send(0, 0, ROUTE, LABEL, data := bytes_of(1000))
    second = talk.send(0, 0, ROUTE, LABEL, bytes_of(1000, seed=1))
    assert second.cancel()
    assert not first.cancel()  # it has begun: a copy goes on
    wanted = data.tobytes()
    data[:] = 0
    found = np.zeros(1000, np.uint8)
    recv = receive(talk, found)
    while not recv.test():
        pass
    assert found.tobytes() == wanted
    assert not receive(talk, found).test()
    assert not first.cancel()


def test_a_withdrawn_receive_leaves_the_message_to_the_next() -> None:
    talk = loop(256)
    data, gone, found = bytes_of(1000), np.zeros(1000, np.uint8), np.zeros(1000, np.uint8)
    early = receive(talk, gone)
    assert early.cancel()
    assert not early.cancel()
    begun = receive(talk, gone)
    talk.send(0, 0, ROUTE, LABEL, data)
    assert not begun.test()
    assert begun.cancel()  # in the middle of the message
    before = gone.tobytes()
    recv = receive(talk, found)
    while not recv.test():
        pass
    assert found.tobytes() == data.tobytes()
    assert gone.tobytes() == before


def test_messages_with_another_tag_wait_aside() -> None:
    talk = loop(4096)
    for tag in range(3):
        label = Label(1, "send", "uint8", 10)
        talk.send(0, 0, Route(0, POINT_TO_POINT, tag), label, np.full(10, tag, np.uint8))
    for tag in (2, 0, 1):
        found = np.full(10, 99, np.uint8)
        assert receive(talk, found, tag=tag).test()
        assert (found == tag).all()


def test_a_message_that_does_not_fit_is_an_error_early_and_late() -> None:
    for is_early in (True, False):
        talk = loop(4096)
        if is_early:
            talk.send(0, 0, Route(0, POINT_TO_POINT, 1), LABEL, bytes_of(1000))
            talk.send(0, 0, ROUTE, Label(2, "send", "uint8", 1), bytes_of(1))
            assert receive(talk, np.zeros(1, np.uint8)).test()
        recv = receive(talk, np.zeros(999, np.uint8), tag=1)
        if not is_early:
            talk.send(0, 0, Route(0, POINT_TO_POINT, 1), LABEL, bytes_of(1000))
        with pytest.raises(CommMismatch, match=r"uint8 x 999 .*sent uint8 x 1000"):
            recv.test()


def test_a_label_survives_packing() -> None:
    for label in (
        LABEL,
        Label(7, "all_gather_bytes", "", 0, "from 3"),
        Label(2**40, "x", "float8_e4m3b11fnuz", 9),
    ):
        assert Label.unpack(label.pack()) == label
    assert str(Label(3, "all_reduce", "fp32", 9, "sum")) == "all_reduce #3 fp32 x 9 sum"


def test_a_flight_record_keeps_the_last_calls_and_says_how_it_ended() -> None:
    record = new_record()
    assert record.last_text() == "no call yet"
    for seq in range(100):
        record.end(record.begin(Label(seq, "barrier", "", 0), 5))
    number = record.begin(Label(1, "recv", "fp32", 3), 0, peer=2, tag=4)
    assert record.calls == 101
    assert len(record.entries()) == ENTRY_COUNT - 1
    assert re.fullmatch(
        r"recv #1 fp32 x 3 with rank 2 tag 4, waits since 0\.\d+ s", record.last_text()
    )
    assert record.collective(5, 99) == Label(99, "barrier", "", 0)
    assert record.collective(4, 99) is None
    assert record.collective(5, 1) is None  # too old
    record.end(number)
    record.end(0)  # its place is taken
    assert record.text().splitlines()[0] == f"process {record.pid}, 101 calls"
    assert record.ended() is None
    record.fail(5, "why not")
    assert record.failure(5) == "why not"
    assert record.failure(4) is None
    record.close()
    assert record.ended() == "closed its communicator after 101 calls"
    page = np.zeros(8192, np.uint8)
    record.move(page)
    assert FlightRecord(page).entries() == record.entries()


def test_short_floats_are_added_in_fp32_and_rounded_once() -> None:
    for dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        # Each addition alone would be lost: 256 + 0.125 rounds to 256 in bfloat16.
        parts = [np.full(40_000, value, dtype) for value in (256, *[0.125] * 16)]
        out = np.empty(40_000, dtype)
        reduce_in_order(parts, "sum", out)
        assert (out == dtype.type(258)).all()
        reduce_in_order(parts, "mean", out)
        assert (out == np.float32(258 / 17).astype(dtype)).all()


def test_integers_wrap_and_bools_are_joined() -> None:
    out = np.empty(1, np.uint8)
    reduce_in_order([np.array([200], np.uint8), np.array([100], np.uint8)], "sum", out)
    assert out[0] == 44
    flags = [np.array([True, False]), np.array([False, False])]
    both = np.empty(2, np.bool_)
    for op, wanted in (("sum", [True, False]), ("max", [True, False]), ("min", [False, False])):
        reduce_in_order(flags, op, both)
        assert both.tolist() == wanted


class _Comm:
    """What MpiRequest uses of an MPI communicator."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def Isend(self, data: Bytes, peer: int, tag: int) -> None:
        self.sizes.append(data.size)


def test_a_message_longer_than_an_int32_goes_in_pieces() -> None:
    comm = _Comm()
    count = 2**31 + 5
    data = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (count,), (0,))
    endpoint = SimpleNamespace(
        comm=comm,
        piece_bytes=PIECE_BYTES,
        debug=False,
        lock=threading.Lock(),
        under_way=set(),
        mpi_tag=lambda route, label: 0,
    )
    MpiRequest(cast(MpiEndpoint, endpoint), data, ROUTE, LABEL, is_send=True)
    assert comm.sizes == [PIECE_BYTES, PIECE_BYTES, 5]
    assert max(comm.sizes) < 2**31


def test_calls_that_do_not_belong_together_have_different_tags() -> None:
    endpoint = cast(MpiEndpoint, SimpleNamespace(tag_limit=8191))
    labels = [Label(seq, "all_reduce", dtype, 9, "sum") for seq in (1, 2) for dtype in "ab"]
    route = Route(0, COLLECTIVE, 0)
    tags = {MpiEndpoint.mpi_tag(endpoint, route, label) for label in labels}
    assert len(tags) == 4
    assert max(tags) <= mpi.TAG_LIMIT_OF_MPI


def test_no_message_is_a_pickle() -> None:
    # mpi4py pickles in its lower-case calls; the upper-case ones take buffers.
    lower = re.compile(r"\bcomm\.(send|recv|isend|irecv|bcast|gather|allgather|scatter|alltoall)\(")
    for path in sorted((ROOT / "comm").glob("*.py")):
        text = path.read_text()
        assert "pickle" not in text, path
        if path.name == "mpi.py":
            assert not lower.search(text)
