"""Wait for messages with a limit, and say who was waited for and what the ranks did last."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ark_dist.comm.communicator import DEFAULT_TIMEOUT_S
from ark_dist.comm.endpoint import Endpoint, Request
from ark_dist.comm.flight import POINT_TO_POINT, FlightRecord, Label, who_did_what
from ark_dist.core.errors import CommAborted, CommError, CommMismatch, CommTimeout, PeerLost

# When and how often a waiting rank looks at the records of the others.
FIRST_LOOK_S, LOOK_EVERY_S = 0.005, 0.02
# What a rank sent before it ended may still arrive.
GRACE_S = 0.2


@dataclass(frozen=True, slots=True)
class Call:
    """One call under way.

    Attributes:
        label: what it is.
        number: its number in the flight record.
        begun_s: when it began, by the monotonic clock.
        deadline_s: when it has to be done.
        peer: the other side of a send or receive; -1 in a collective call.
    """

    label: Label
    number: int
    begun_s: float
    deadline_s: float
    peer: int


class Waiter:
    """The calls of a communicator under way, and whether it is broken."""

    def __init__(self, endpoint: Endpoint, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s is {timeout_s}; it must be above 0")
        self.timeout_s = timeout_s
        self.is_closed = False
        self.failure: str | None = None
        self._endpoint = endpoint
        self._name = f"rank {endpoint.rank}"

    @property
    def record(self) -> FlightRecord:
        """The flight record of this rank."""
        return self._endpoint.records[self._endpoint.members[self._endpoint.rank]]

    def begin(self, label: Label, timeout_s: float | None, *, peer: int = -1, tag: int = 0) -> Call:
        """Enter a call; raise if the communicator is closed or broken."""
        self._check_usable(label.op)
        now, limit_s = time.monotonic(), self._limit(timeout_s)
        number = self.record.begin(label, self._endpoint.context, peer, tag)
        return Call(label, number, now, now + limit_s, peer)

    def again(self, call: Call, timeout_s: float | None) -> Call:
        """The call with a limit from now on."""
        return replace(call, deadline_s=time.monotonic() + self._limit(timeout_s))

    def end(self, call: Call, error: BaseException | None) -> None:
        """Enter that a call is over; an error breaks the communicator."""
        self.record.end(call.number)
        if error is not None:
            self.fail(f"{call.label}: {type(error).__name__}: {error}")

    def fail(self, text: str) -> None:
        """Break the communicator, for the other ranks too."""
        if self.failure is None:
            self.failure = text.partition("\n")[0]
            self.record.fail(self._endpoint.context, self.failure)

    def wait(self, call: Call, requests: Mapping[Request, int]) -> None:
        """Return when all messages, given with their peers, are done; raise if that can't be."""
        pending = dict(requests)
        ended: dict[int, float] = {}
        next_look_s = call.begun_s + FIRST_LOOK_S
        round_index = 0
        while True:
            pending = {r: peer for r, peer in pending.items() if not r.test()}
            if not pending:
                return
            now = time.monotonic()
            if now >= next_look_s:
                self._look(call, {*pending.values()}, ended, now)
                next_look_s = now + LOOK_EVERY_S
            if now >= call.deadline_s:
                raise self._timeout(call, tuple(sorted({*pending.values()})), now)
            self._endpoint.pause(round_index)
            round_index += 1

    def check(self) -> None:
        """Raise if the communicator is closed or broken, or a rank ended."""
        self._check_usable("check")
        for rank, record in self._others():
            self._check_failure("check", rank, record)
            end = record.ended()
            if end:
                raise self._lost("check", {rank: end})

    def _look(self, call: Call, missing: set[int], ended: dict[int, float], now: float) -> None:
        """Raise if the records of the others show that the wait is in vain."""
        others = list(self._others())
        if call.label.op not in POINT_TO_POINT:
            self._check_labels(call.label, others)
        for rank, record in others:
            self._check_failure(str(call.label), rank, record)
        ends = {rank: end for rank, record in others if rank in missing and (end := record.ended())}
        for rank in ends:
            ended.setdefault(rank, now)
        over = {rank: end for rank, end in ends.items() if now - ended[rank] > GRACE_S}
        if over:
            raise self._lost(str(call.label), over)

    def _check_labels(self, label: Label, others: list[tuple[int, FlightRecord]]) -> None:
        for rank, record in others:
            theirs = record.collective(self._endpoint.context, label.seq)
            if theirs is not None and theirs != label:
                raise CommMismatch(
                    f"{self._name} called {label}, rank {rank} called {theirs}; "
                    "all ranks must make the same calls in the same order"
                )

    def _check_failure(self, what: str, rank: int, record: FlightRecord) -> None:
        text = record.failure(self._endpoint.context)
        if text is not None:
            raise CommAborted(f"{self._name}: {what}: rank {rank} failed: {text}")

    def _check_usable(self, what: str) -> None:
        if self.is_closed:
            raise CommError(f"{self._name}: {what}: the communicator is closed; make another one")
        if self.failure is not None:
            raise CommAborted(
                f"{self._name}: {what}: the communicator is broken since {self.failure}"
            )

    def _others(self) -> Iterator[tuple[int, FlightRecord]]:
        for rank, world_rank in enumerate(self._endpoint.members):
            record = self._endpoint.records.get(world_rank)
            if rank != self._endpoint.rank and record is not None:
                yield rank, record

    def _lost(self, what: str, ends: Mapping[int, str]) -> PeerLost:
        text = ", ".join(f"rank {rank} {end}" for rank, end in sorted(ends.items()))
        return PeerLost(
            f"{self._name}: {what}: {text}\n{self.story()}",
            rank=self._endpoint.rank,
            lost=tuple(sorted(ends)),
        )

    def _timeout(self, call: Call, missing: tuple[int, ...], now: float) -> CommTimeout:
        waited_s = now - call.begun_s
        names = ", ".join(map(str, missing))
        return CommTimeout(
            f"{self._name}: {call.label}: nothing from rank {names} in {waited_s:.3g} s; "
            f"raise timeout_s if this is only slow\n{self.story()}",
            rank=self._endpoint.rank,
            op=call.label.op,
            seq=call.label.seq,
            waited_s=waited_s,
            missing=missing,
        )

    def story(self) -> str:
        """Say in a line per rank what each did last, as far as it can be seen from here."""
        records = dict(self._others()) | {self._endpoint.rank: self.record}
        unseen = sorted({*range(len(self._endpoint.members))} - {*records})
        lines = [who_did_what(sorted(records.items()))]
        if unseen:
            names = ", ".join(map(str, unseen))
            lines.append(f"  rank {names}: not seen from here (another node, or no shared memory)")
        return "\n".join(lines)

    def _limit(self, timeout_s: float | None) -> float:
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        if not limit_s > 0:
            raise ValueError(f"timeout_s is {limit_s}; it must be above 0")
        return limit_s


class MessageWork:
    """A send or receive under way."""

    def __init__(self, waiter: Waiter, call: Call, request: Request) -> None:
        self._waiter = waiter
        self._call = call
        self._request = request
        self._is_done = False
        self._error: CommError | None = None

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when it is done, or raise; after CommTimeout it may be waited for again."""
        if not self._is_done:
            call = self._waiter.again(self._call, timeout_s)
            with self._ending():
                self._waiter.wait(call, {self._request: call.peer})
        if self._error is not None:
            raise self._error

    def done(self) -> bool:
        """Make progress and tell whether it ended, well or not; never blocks."""
        if not self._is_done:
            try:
                is_done = self._request.test()
            except CommError as error:
                self._finish(error)
            else:
                if is_done:
                    self._finish(None)
        return self._is_done

    def exception(self) -> BaseException | None:
        """The error it ended with; None if there is none, or none yet."""
        return self._error

    def cancel(self) -> bool:
        """Withdraw it; False if that can't be done any more."""
        if not self._is_done and self._request.cancel():
            self._finish(None)
        return self._is_done

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except CommTimeout:
            raise
        except CommError as error:
            self._finish(error)
        else:
            self._finish(None)

    def _finish(self, error: CommError | None) -> None:
        self._is_done = True
        self._error = error
        self._waiter.end(self._call, error)
