"""Move data between ranks for a running kernel: the host's side of the proxy transport."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgpack
import numpy as np

from ark_dist.comm.arrays import as_bytes, reduce_in_order
from ark_dist.comm.communicator import Communicator, Work
from ark_dist.core.errors import ArkError, CommError, CommTimeout
from ark_dist.core.graph import HOST, Node, Raise
from ark_dist.core.groups import even_cuts, parts_of
from ark_dist.core.op import Array
from ark_dist.core.pieces import pieces, rows, shifted
from ark_dist.core.plan import Plan
from ark_dist.core.shape import Box, box_shape, box_size
from ark_dist.launch.memory import Arenas
from ark_dist.launch.peer_data import read_names
from ark_dist.launch.proxy_steps import Running, Steps
from ark_dist.launch.rank_memory import RankMemory

# Up to here everybody gets all parts of a sum; larger ones are cut, a slice for each rank.
SMALL_BYTES = 16 * 1024
# A thread that found nothing to do looks again after this, longer each time.
SHORT_PAUSE_S, LONG_PAUSE_S = 20e-6, 500e-6


@dataclass(frozen=True, slots=True)
class _Order:
    """A request of the plan, and the words through which kernel and host talk about it."""

    node: Node
    tag: int
    source: Array | None
    target: Array | None
    ask: Array
    done: Array


def requests(plan: Plan) -> list[Node]:
    """The nodes of a plan that ask the host to move data."""
    return [node for method in plan.methods for node in method.nodes if node.op == "request"]


class Proxy:
    """A thread that does what the kernel asks for, in the order in which it asks.

    It alone uses its communicator. Making it is collective.
    """

    def __init__(
        self,
        plan: Plan,
        communicator: Communicator,
        memory: RankMemory,
        arenas: Arenas,
        timeout_s: float,
        on_error: Callable[[ArkError], None],
    ) -> None:
        """Take the program; `on_error` is called, in the thread, with what ended it."""
        self._world = communicator
        self._communicator = communicator.dup()
        self._rank = plan.rank
        self._timeout_s = timeout_s
        self._on_error = on_error
        nodes = requests(plan)
        tags = _agreed_tags([str(n.attributes["key"]) for n in nodes], self._communicator)
        self._orders = [_order(node, tags, memory, arenas) for node in nodes]
        self._is_wanted = threading.Event()
        self._is_stopped = False
        # Whether messages may be under way though the thread has ended.
        self.is_unfinished = False
        self._thread: threading.Thread | None = None

    def reconnect(self) -> None:
        """Leave what is under way behind, together with all ranks."""
        self._communicator.close()
        self._communicator = self._world.dup()
        self.is_unfinished = False

    def start(self) -> None:
        """Start the thread; the words are zero."""
        self._is_stopped = False
        self._thread = threading.Thread(target=self._serve, name="ark_dist proxy", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Say that the kernel has work, so that it may ask for something."""
        self._is_wanted.set()

    def rest(self) -> None:
        """Say that the kernel is idle."""
        self._is_wanted.clear()

    def stop(self) -> None:
        """End the thread; the kernel has ended."""
        self._is_stopped = True
        self._is_wanted.set()
        if self._thread is not None:
            self._thread.join(self._timeout_s)
            self._thread = None

    def _serve(self) -> None:
        try:
            self._loop()
        except ArkError as error:
            self.is_unfinished = True
            self._on_error(error)
        except Exception as error:  # of NumPy or MPI: nobody else would end the kernel
            self.is_unfinished = True
            text = f"rank {self._rank}: the proxy failed: {type(error).__name__}: {error}"
            self._on_error(CommError(text))

    def _loop(self) -> None:
        begun = [0] * len(self._orders)
        active: dict[int, Running] = {}
        pause_s = SHORT_PAUSE_S
        while not self._is_stopped:
            is_moving = False
            for index, order in enumerate(self._orders):
                if index not in active and int(order.ask[0]) > begun[index]:
                    begun[index] += 1
                    active[index] = Running(self._steps(order), time.monotonic())
                    is_moving = True
            for index in list(active):
                if active[index].is_done():
                    order = self._orders[index]
                    order.done[0] = begun[index]
                    del active[index]
                    is_moving = True
                else:
                    self._check_time(self._orders[index], active[index])
            if is_moving:
                pause_s = SHORT_PAUSE_S
                continue
            if not active and not self._is_wanted.is_set():
                self._is_wanted.wait()
                continue
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, LONG_PAUSE_S)
        self.is_unfinished = bool(active)

    def _check_time(self, order: _Order, running: Running) -> None:
        waited_s = time.monotonic() - running.since_s
        if waited_s > self._timeout_s:
            attrs = order.node.attributes
            others = [r for r in _ranks(attrs["ranks"]) if r != self._rank]
            raise CommTimeout(
                f"rank {self._rank}: {attrs['op']} ({attrs['key']}) waits for ranks {others} for "
                f"{waited_s:.0f} s",
                rank=self._rank,
                op=str(attrs["op"]),
                waited_s=waited_s,
                missing=tuple(others),
            )

    # Operators as exchanges of messages.

    def _steps(self, order: _Order) -> Steps:
        return _STEPS[str(order.node.attributes["op"])](self, order)

    def _exchange(
        self, order: _Order, sends: Mapping[int, Array], receives: Mapping[int, Array]
    ) -> list[Work]:
        """Start messages; arrays are contiguous."""
        works = [
            self._communicator.irecv(as_bytes(array), peer, order.tag)
            for peer, array in receives.items()
            if array.size
        ]
        works += [
            self._communicator.isend(as_bytes(array), peer, order.tag)
            for peer, array in sends.items()
            if array.size
        ]
        return works

    def send(self, order: _Order) -> Steps:
        """Give the source to the peer."""
        source = _contiguous(order.source)
        yield self._exchange(order, {_int(order, "peer"): source}, {})

    def recv(self, order: _Order) -> Steps:
        """Fill the target from the peer."""
        target = _given(order.target)
        data = np.empty(target.shape, target.dtype)
        yield self._exchange(order, {}, {_int(order, "peer"): data})
        target[...] = data

    def broadcast(self, order: _Order) -> Steps:
        """Give everybody the root's source."""
        target, root = _given(order.target), _int(order, "peer")
        if root == self._rank:
            source = _contiguous(order.source)
            yield self._exchange(order, dict.fromkeys(self._others(order), source), {})
            target[...] = source
        else:
            data = np.empty(target.shape, target.dtype)
            yield self._exchange(order, {}, {root: data})
            target[...] = data

    def barrier(self, order: _Order) -> Steps:
        """Exchange a byte with everybody."""
        byte = np.zeros(1, np.uint8)
        here = {peer: np.zeros(1, np.uint8) for peer in self._others(order)}
        yield self._exchange(order, dict.fromkeys(here, byte), here)

    def all_reduce(self, order: _Order) -> Steps:
        """Combine all sources: small ones everywhere, large ones a slice at each rank."""
        source, target = _contiguous(order.source), _given(order.target)
        ranks, others = self._group(order), self._others(order)
        flat = source.reshape(-1)
        result = np.empty_like(flat)
        count = len(ranks) if source.nbytes > SMALL_BYTES else 1
        cuts = [flat.size * k // count for k in range(count + 1)]
        slices = {
            r: slice(cuts[k], cuts[k + 1]) if count > 1 else slice(None)
            for k, r in enumerate(ranks)
        }
        mine = slices[self._rank]
        parts = {r: np.empty_like(flat[mine]) for r in others}
        yield self._exchange(order, {r: flat[slices[r]] for r in others}, parts)
        parts[self._rank] = flat[mine]
        self._combine(order, [parts[r] for r in ranks], result[mine])
        if count > 1:
            combined = dict.fromkeys(others, result[mine])
            yield self._exchange(order, combined, {r: result[slices[r]] for r in others})
        target[...] = result.reshape(target.shape)

    def reduce_scatter(self, order: _Order) -> Steps:
        """Combine this rank's rows of all sources."""
        source, target = _contiguous(order.source), _given(order.target)
        ranks, others = self._group(order), self._others(order)
        axis = _int(order, "axis") % source.ndim
        cuts = _cuts(order, source.shape[axis])
        boxes = {r: rows(source.shape, axis, *cuts[k]) for k, r in enumerate(ranks)}
        parts = {r: np.empty(target.shape, target.dtype) for r in others}
        sends = {r: _contiguous(source[_slices(boxes[r])]) for r in others}
        yield self._exchange(order, sends, parts)
        parts[self._rank] = _contiguous(source[_slices(boxes[self._rank])])
        result = np.empty(target.shape, target.dtype)
        self._combine(order, [parts[r] for r in ranks], result)
        target[...] = result

    def all_gather(self, order: _Order) -> Steps:
        """Put everybody's rows side by side."""
        source, target = _contiguous(order.source), _given(order.target)
        ranks = self._group(order)
        axis = _int(order, "axis") % target.ndim
        cuts = _cuts(order, target.shape[axis])
        places = {r: rows(target.shape, axis, *cuts[k]) for k, r in enumerate(ranks)}
        yield from self._fill(order, dict.fromkeys(ranks, source), places)

    def all_to_all(self, order: _Order) -> Steps:
        """Swap pieces with everybody."""
        source, target = _contiguous(order.source), _given(order.target)
        ranks = self._group(order)
        axis = _int(order, "axis") % target.ndim
        cuts = _cuts(order, target.shape[axis])
        places = {r: rows(target.shape, axis, *cuts[k]) for k, r in enumerate(ranks)}
        sends = {r: _contiguous(source[_slices(box)]) for r, box in places.items()}
        yield from self._fill(order, sends, places)

    def _fill(self, order: _Order, sends: Mapping[int, Array], places: Mapping[int, Box]) -> Steps:
        """Send each rank an array and write what comes from it into its place."""
        target, others = _given(order.target), self._others(order)
        parts = {r: np.empty(box_shape(places[r]), target.dtype) for r in others}
        yield self._exchange(order, {r: sends[r] for r in others}, parts)
        for r in others:
            target[_slices(places[r])] = parts[r]
        target[_slices(places[self._rank])] = sends[self._rank]

    def redistribute(self, order: _Order) -> Steps:
        """Bring each piece from the lowest rank that holds it."""
        source, target = _contiguous(order.source), _given(order.target)
        ranks = self._group(order)
        held = parts_of(_ints(order, "source"), source.ndim, len(ranks))
        wanted = parts_of(_ints(order, "target"), source.ndim, len(ranks))
        mine = ranks.index(self._rank)
        gives = {
            r: [source[_slices(shifted(b, held[mine]))] for k, b in pieces(held, box) if k == mine]
            for r, box in zip(ranks, wanted, strict=True)
        }
        takes: dict[int, list[Box]] = {r: [] for r in ranks}
        for k, box in pieces(held, wanted[mine]):
            takes[ranks[k]].append(box)
        data = {r: np.empty(sum(map(box_size, boxes)), target.dtype) for r, boxes in takes.items()}
        sends = {
            r: np.concatenate([part.reshape(-1) for part in parts])
            for r, parts in gives.items()
            if parts and r != self._rank
        }
        yield self._exchange(order, sends, {r: d for r, d in data.items() if r != self._rank})
        if gives[self._rank]:
            data[self._rank] = np.concatenate([p.reshape(-1) for p in gives[self._rank]])
        for r, boxes in takes.items():
            start = 0
            for box in boxes:
                part = data[r][start : start + box_size(box)].reshape(box_shape(box))
                target[_slices(shifted(box, wanted[mine]))] = part
                start += box_size(box)

    def _group(self, order: _Order) -> list[int]:
        return list(_ranks(order.node.attributes["ranks"]))

    def _others(self, order: _Order) -> list[int]:
        return [r for r in self._group(order) if r != self._rank]

    def _combine(self, order: _Order, parts: Sequence[Array], out: Array) -> None:
        reduce_in_order(parts, str(order.node.attributes["reduce"]), out)


_STEPS: dict[str, Callable[[Proxy, _Order], Steps]] = {
    "send": Proxy.send,
    "recv": Proxy.recv,
    "broadcast": Proxy.broadcast,
    "barrier": Proxy.barrier,
    "all_reduce": Proxy.all_reduce,
    "reduce_scatter": Proxy.reduce_scatter,
    "all_gather": Proxy.all_gather,
    "all_to_all": Proxy.all_to_all,
    "redistribute": Proxy.redistribute,
}


def _agreed_tags(keys: Sequence[str], communicator: Communicator) -> dict[str, int]:
    """Number the messages of all ranks alike."""
    packed = communicator.all_gather_bytes(msgpack.packb(list(keys)))
    known = sorted({key for rank, data in enumerate(packed) for key in read_names(data, rank)})
    return {key: tag for tag, key in enumerate(known)}


def _order(node: Node, tags: Mapping[str, int], memory: RankMemory, arenas: Arenas) -> _Order:
    key = str(node.attributes["key"])
    source = arenas.view(node.inputs[0]) if node.inputs else None
    target = arenas.view(node.takes[0]) if node.takes else None
    ask, done = (memory.flag(Raise(HOST, f"{key}.{word}")) for word in ("ask", "done"))
    return _Order(node, tags[key], source, target, ask, done)


def _given(array: Array | None) -> Array:
    assert array is not None
    return array


def _contiguous(array: Array | None) -> Array:
    return np.ascontiguousarray(_given(array))


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


def _cuts(order: _Order, size: int) -> list[tuple[int, int]]:
    """The rows of each member of the group."""
    count = len(_ints(order, "ranks"))
    return list(pairwise(_ints(order, "cuts") or even_cuts(size, count)))


def _int(order: _Order, name: str) -> int:
    value = order.node.attributes[name]
    assert isinstance(value, int)
    return value


def _ints(order: _Order, name: str) -> tuple[int, ...]:
    return _ranks(order.node.attributes[name])


def _ranks(value: object) -> tuple[int, ...]:
    assert isinstance(value, tuple)
    return value
