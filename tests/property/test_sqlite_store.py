"""SqliteStore equals a dict, restarts included; its listings equal MemoryStore's."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from tests.fakes import PROTOTYPE, STRESS, assert_accounts, buffer, read, restart
from zarr_cache import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer

# What LIKE, GLOB, quoting, C strings, case folding and sorting trip over.
PIECES = [
    "a",
    "A",
    "ab",
    "a_b",
    "axb",
    "a%b",
    "a*b",
    "a?b",
    "[a]",
    "a'b",
    'a"b',
    "a;--",
    "a\\b",
    "a\0b",
    "a\0",
    "a b",
    "a-b",
    "a.b",
    "a0",
    "0",
    "é",
    "É",
    "e\u0301",
    "ß",
    "İ",
    "\ud7ff",
    "\ue000",
    "\uffff",
    "😀",
    "😀b",
    "\U0010ffff",
    "zarr.json",
]
KEYS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("/".join)
PREFIXES = st.one_of(
    st.just(""),
    st.sampled_from(PIECES),
    KEYS,
    KEYS.map(lambda key: f"{key}/"),
    KEYS.map(lambda key: key[:-1]),
)
VALUES = st.binary(max_size=20)
POSITIONS = st.integers(0, 25)
REQUESTS = st.one_of(
    st.none(),
    st.builds(lambda start, length: RangeByteRequest(start, start + length), POSITIONS, POSITIONS),
    st.builds(OffsetByteRequest, POSITIONS),
    st.builds(SuffixByteRequest, st.integers(1, 25)),
)


async def listed(keys: AsyncIterator[str]) -> list[str]:
    return [key async for key in keys]


def content(found: Buffer | None) -> bytes | None:
    return None if found is None else found.to_bytes()


class SameAsMemory(RuleBasedStateMachine):
    """Each rule is done to both stores, or asked of both."""

    def __init__(self) -> None:
        super().__init__()
        self.cleanup = ExitStack()
        folder = self.cleanup.enter_context(tempfile.TemporaryDirectory())
        self.path = Path(folder) / "data.sqlite"
        self.store = SqliteStore(self.path)
        self.memory = MemoryStore()
        self.written: list[str] = []

    def teardown(self) -> None:
        self.store.close()
        assert_accounts(self.path)
        self.cleanup.close()

    @property
    def both(self) -> tuple[Store, Store]:
        return self.store, self.memory

    @initialize()
    def fill(self) -> None:
        """Neighbours of all kinds: keys that are folders too, and prefixes of each other."""
        keys = [f"{piece}{end}" for piece in PIECES for end in ("", "/0", "/0/0", "0")]
        for store in self.both:
            sync(store._set_many([(key, buffer(key.encode())) for key in keys]))

    @rule(key=KEYS, value=VALUES)
    def set(self, key: str, value: bytes) -> None:
        for store in self.both:
            sync(store.set(key, buffer(value)))

    @rule(key=KEYS, value=VALUES)
    def set_sync(self, key: str, value: bytes) -> None:
        self.store.set_sync(key, buffer(value))
        self.memory.set_sync(key, buffer(value))

    @rule(key=KEYS, value=VALUES)
    def set_if_not_exists(self, key: str, value: bytes) -> None:
        for store in self.both:
            sync(store.set_if_not_exists(key, buffer(value)))

    @rule(values=st.lists(st.tuples(KEYS, VALUES), max_size=5))
    def set_many(self, values: list[tuple[str, bytes]]) -> None:
        for store in self.both:
            sync(store._set_many([(key, buffer(value)) for key, value in values]))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        for store in self.both:
            sync(store.delete(key))

    @rule(key=KEYS)
    def delete_sync(self, key: str) -> None:
        self.store.delete_sync(key)
        self.memory.delete_sync(key)

    @rule(prefix=PREFIXES)
    def delete_dir(self, prefix: str) -> None:
        for store in self.both:
            sync(store.delete_dir(prefix))

    @rule()
    def clear(self) -> None:
        for store in self.both:
            sync(store.clear())

    @rule()
    def restart(self) -> None:
        restart(self.store)
        self.store = SqliteStore(self.path)

    @rule(key=KEYS, request=REQUESTS)
    def get(self, key: str, request: ByteRequest | None) -> None:
        expected = sync(read(self.memory, key, request))

        assert sync(read(self.store, key, request)) == expected
        assert content(self.store.get_sync(key, byte_range=request)) == expected

    @rule(asked=st.lists(st.tuples(KEYS, REQUESTS), max_size=4))
    def get_partial_values(self, asked: list[tuple[str, ByteRequest | None]]) -> None:
        expected = sync(self.memory.get_partial_values(PROTOTYPE, asked))
        found = sync(self.store.get_partial_values(PROTOTYPE, asked))

        assert list(map(content, found)) == list(map(content, expected))

    @rule(key=KEYS)
    def exists(self, key: str) -> None:
        assert sync(self.store.exists(key)) == sync(self.memory.exists(key))

    @rule(prefix=PREFIXES)
    def list_prefix(self, prefix: str) -> None:
        expected = sorted(key for key in self.memory._store_dict if key.startswith(prefix))

        assert sync(listed(self.store.list_prefix(prefix))) == expected

    @rule(prefix=PREFIXES)
    def list_dir(self, prefix: str) -> None:
        expected = sync(listed(self.memory.list_dir(prefix)))
        found = sync(listed(self.store.list_dir(prefix)))

        assert sorted(found) == sorted(expected)

    @rule(prefix=PREFIXES)
    def is_empty(self, prefix: str) -> None:
        assert sync(self.store.is_empty(prefix)) == sync(self.memory.is_empty(prefix))

    @rule(prefix=PREFIXES)
    def getsize_prefix(self, prefix: str) -> None:
        size = sync(self.memory.getsize_prefix(prefix))

        assert sync(self.store.getsize_prefix(prefix)) == size

    @invariant()
    def keys_and_values_are_the_same(self) -> None:
        keys = sync(listed(self.store.list()))
        buffers = sync(self.store.get_partial_values(PROTOTYPE, [(key, None) for key in keys]))
        values = dict(zip(keys, map(content, buffers), strict=True))

        assert values == {key: value.to_bytes() for key, value in self.memory._store_dict.items()}
        assert keys == sorted(keys)


TestSameAsMemory = SameAsMemory.TestCase
TestSameAsMemory.settings = settings(
    max_examples=20 * STRESS, stateful_step_count=40, print_blob=True
)
