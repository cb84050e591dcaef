"""Work is done in another thread, which is there while there is work."""

from __future__ import annotations

import threading

import pytest

from zarr_cache.core import background
from zarr_cache.core.background import BackgroundWorker


def test_work_is_done_in_one_thread_that_is_not_the_callers() -> None:
    done = threading.Semaphore(0)
    threads: list[threading.Thread] = []

    def work() -> None:
        threads.append(threading.current_thread())
        done.release()

    subject = BackgroundWorker(work)
    for _ in range(3):
        subject.wake()
        done.acquire()
    subject.stop()

    assert len(set(threads)) == 1
    assert threading.current_thread() not in threads
    assert not threads[0].is_alive()


def test_work_that_comes_while_work_is_done_is_done_after_it() -> None:
    began, go_on, done = threading.Event(), threading.Event(), threading.Semaphore(0)

    def work() -> None:
        began.set()
        go_on.wait()
        done.release()

    subject = BackgroundWorker(work)
    subject.wake()
    began.wait()
    subject.wake()
    go_on.set()
    done.acquire()
    done.acquire()
    subject.stop()


def test_a_stop_waits_for_what_is_being_done_and_not_for_what_comes_meanwhile() -> None:
    began, is_over, done = threading.Event(), threading.Event(), threading.Semaphore(0)

    def work() -> None:
        # As while others always bring more.
        if not is_over.is_set():
            subject.wake(is_urgent=True)
        began.set()
        done.release()

    subject = BackgroundWorker(work)
    subject.wake(is_urgent=True)
    began.wait()
    subject.stop()

    # It is done all the same, by another thread.
    done.acquire()
    done.acquire()
    is_over.set()
    subject.stop()


def test_a_thread_that_was_stopped_leaves_what_comes_to_another() -> None:
    threads: list[threading.Thread] = []
    done = threading.Semaphore(0)

    def work() -> None:
        threads.append(threading.current_thread())
        done.release()

    subject = BackgroundWorker(work)
    for _ in range(2):
        subject.wake()
        done.acquire()
        subject.stop()
        assert not threads[-1].is_alive()

    assert threads[0] is not threads[1]


def test_a_thread_without_work_ends_and_work_starts_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "IDLE_SECONDS", 0)
    done = threading.Semaphore(0)
    threads: list[threading.Thread] = []

    def work() -> None:
        threads.append(threading.current_thread())
        done.release()

    subject = BackgroundWorker(work)
    for _ in range(2):
        subject.wake()
        done.acquire()
        threads[-1].join()

    assert threads[0] is not threads[1]


def test_work_is_done_on_the_spot_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", start)
    threads: list[threading.Thread] = []
    subject = BackgroundWorker(lambda: threads.append(threading.current_thread()))

    subject.wake()

    assert threads == [threading.current_thread()]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_work_that_raises_does_not_keep_the_next_from_being_done() -> None:
    threads: list[threading.Thread] = []
    done = threading.Event()

    def work() -> None:
        threads.append(threading.current_thread())
        if len(threads) == 1:
            raise ZeroDivisionError
        done.set()

    subject = BackgroundWorker(work)
    subject.wake()
    while not threads:
        pass
    threads[0].join()

    subject.wake()
    done.wait()
    subject.stop()
