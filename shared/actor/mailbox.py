"""A queue for one consumer with two limits; when full, `offer` says no and the owner decides."""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Bounded by items and by weight (bytes); an item heavier than the limit fits an empty box."""

    def __init__(self, *, max_items: int, max_weight: int) -> None:
        self._items: deque[T] = deque()
        self._weight = 0
        self._max_items = max_items
        self._max_weight = max_weight
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def offer(self, item: T, weight: int = 0) -> bool:
        """Put an item in and return True, or return False when it does not fit."""
        full = len(self._items) >= self._max_items or self._weight + weight > self._max_weight
        if full and self._items:
            return False
        self._items.append(item)
        self._weight += weight
        self._filled.set()
        return True

    async def take(self) -> list[T]:
        """Wait for an item, then return all there are, in order. Cancellation loses nothing."""
        await self._filled.wait()
        return self.take_now()

    def take_now(self) -> list[T]:
        """All items there are, perhaps none, without waiting."""
        self._filled.clear()
        self._weight = 0
        items = list(self._items)
        self._items.clear()
        return items
