"""The connections to a file: which are idle, and which an operation has taken."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from zarr_cache.file.connection import WriteLock, connect
from zarr_cache.file.pool import ConnectionLease, ConnectionPool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr_cache.file.connection import Connection


class Made:
    """Makes connections, and knows them."""

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        self.firsts: list[bool] = []

    def __call__(self, *, is_first: bool) -> Connection:
        self.firsts.append(is_first)
        self.connections.append(connect(":memory:", WriteLock()))
        return self.connections[-1]


@pytest.fixture
def made() -> Iterator[Made]:
    made = Made()
    yield made
    for connection in made.connections:
        connection.close()


@pytest.fixture
def pool(made: Made) -> ConnectionPool:
    pool = ConnectionPool(made)
    pool.open_with(made(is_first=True))
    return pool


def end(pool: ConnectionPool, lease: ConnectionLease) -> None:
    lease.has_ended = True
    pool.put_back(lease)


def is_closed(connection: Connection) -> bool:
    try:
        connection.execute("SELECT 1")
    except Exception:  # noqa: BLE001 - whichever it is
        return True
    return False


def test_operations_one_after_another_share_a_connection(pool: ConnectionPool, made: Made) -> None:
    for _ in range(3):
        lease = ConnectionLease()
        pool.take(lease)
        end(pool, lease)

    assert len(made.connections) == 1


def test_operations_at_once_have_a_connection_each(pool: ConnectionPool, made: Made) -> None:
    one, other = ConnectionLease(), ConnectionLease()

    assert pool.take(one) is not pool.take(other)
    assert made.firsts == [True, False]
    end(pool, one)
    end(pool, other)


def test_a_connection_in_a_transaction_is_closed_and_not_put_back(
    pool: ConnectionPool, made: Made
) -> None:
    lease = ConnectionLease()
    pool.take(lease).execute("BEGIN")
    end(pool, lease)

    assert is_closed(made.connections[0])
    assert not pool.connections


def test_a_lease_that_has_ended_and_was_not_put_back_is_found_by_the_next(
    pool: ConnectionPool, made: Made
) -> None:
    interrupted = ConnectionLease()
    first = pool.take(interrupted)
    interrupted.has_ended = True

    assert pool.take(ConnectionLease()) is first
    assert len(made.connections) == 1


def test_a_cleared_pool_leaves_what_is_in_use_to_the_operation(pool: ConnectionPool) -> None:
    using, of_a_loop = ConnectionLease(), ConnectionLease()
    used, kept = pool.take(using), pool.take(of_a_loop)
    of_a_loop.connection = None
    end(pool, of_a_loop)
    unused = pool.clear({kept})

    assert not pool.is_open
    assert unused == set()
    assert not is_closed(used)
    end(pool, using)
    assert is_closed(used)
    assert not is_closed(kept)


def test_a_cleared_pool_returns_the_idle_connections(pool: ConnectionPool, made: Made) -> None:
    assert pool.clear(set()) == set(made.connections)
    assert pool.clear(set()) == set()


def test_waiting_for_no_operation_ends_with_the_last_one(pool: ConnectionPool) -> None:
    lease = ConnectionLease()
    pool.take(lease)
    is_waiting, order = threading.Event(), []

    def wait() -> None:
        with pool.lock:
            is_waiting.set()
            pool.wait_until_unused()
            order.append("unused")

    waiting = threading.Thread(target=wait)
    waiting.start()
    is_waiting.wait()
    order.append("ended")
    end(pool, lease)
    waiting.join()

    assert order == ["ended", "unused"]
    assert not pool.exclusive
