import threading
import time
from collections.abc import Iterator
from itertools import count, islice

import pytest

from sae_bench.background import overlapped


def test_order_is_kept_and_all_items_are_used() -> None:
    assert list(overlapped(lambda x: x * x, range(10))) == [x * x for x in range(10)]
    assert list(overlapped(str, [])) == []


def test_items_are_taken_here_and_work_is_done_elsewhere() -> None:
    def items() -> Iterator[int]:
        yield threading.get_ident()

    (here,) = overlapped(lambda thread: (thread, threading.get_ident()), items())
    assert here[0] == threading.get_ident() != here[1]


def test_it_works_at_most_a_bounded_number_of_steps_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in count():
            taken.append(item)
            yield item

    results = overlapped(lambda x: x, items(), ahead=2)
    assert list(islice(results, 3)) == [0, 1, 2]
    assert len(taken) == 5


def test_errors_of_the_work_arrive() -> None:
    with pytest.raises(ZeroDivisionError):
        list(overlapped(lambda x: 1 // x, [1, 0, 1]))


def test_what_was_handed_over_is_finished_when_the_items_fail() -> None:
    done: list[int] = []

    def items() -> Iterator[int]:
        yield from (1, 2)
        raise KeyboardInterrupt

    def work(item: int) -> None:
        time.sleep(0.02)
        done.append(item)

    with pytest.raises(KeyboardInterrupt):
        list(overlapped(work, items()))
    assert done == [1, 2]


def test_an_abandoned_iterator_leaves_no_thread() -> None:
    before = threading.active_count()
    results = overlapped(lambda x: x, count())
    next(results)
    assert threading.active_count() == before + 1
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
