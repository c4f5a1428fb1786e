"""The programs of docs/communication.md give on several ranks what the document says."""

import contextlib
import io

import pytest

from ark_dist import world
from ark_dist.comm.communicator import Communicator
from tests.rank_threads import on_ranks
from tests.test_docs import ROOT, blocks

PROGRAMS = [b.text for b in blocks(ROOT / "docs" / "communication.md") if b.info == "python"]


def printed(program: str, size: int) -> list[str]:
    """What a program prints on so many ranks; only rank 0's prints anything."""

    def work(communicator: Communicator) -> None:
        with world.use(communicator):
            exec(program, {"__name__": "__main__"})

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        on_ranks(size, work)
    return text.getvalue().splitlines()


def test_the_ring_of_the_local_view_on_two_ranks_ends_as_the_document_says() -> None:
    assert printed(PROGRAMS[0], 2) == [
        "with my neighbour's [10. 12. 14.]",
        "sum of all [10. 12. 14.]",
    ]


def test_the_ring_of_the_local_view_works_on_three_ranks() -> None:
    assert printed(PROGRAMS[0], 3) == [
        "with my neighbour's [20. 22. 24.]",
        "sum of all [30. 33. 36.]",
    ]


@pytest.mark.parametrize("size", [2, 3])
def test_the_global_view_gives_what_one_rank_gives(size: int) -> None:
    assert printed(PROGRAMS[1], size) == ["(2, 8) 128.0"]
