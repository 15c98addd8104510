"""What the driver needs of asyncio. `_threads` is the same for threads, name by name."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
Later = Coroutine[Any, Any, T]
"""What a function of this colour gives back at first."""

Cancelled = (asyncio.CancelledError, KeyboardInterrupt, SystemExit)
"""What ends a caller from outside, as opposed to an error of its own."""

sleep = asyncio.sleep

_keep: set[asyncio.Future[Any]] = set()


async def pause() -> None:
    """Let every caller that is ready run once."""
    await asyncio.sleep(0)


async def give_way() -> None:
    """Let whoever waits for a connection that was given back get it and send."""
    for _ in range(4):  # woken, handed the connection, its check, the first bytes
        await asyncio.sleep(0)


async def run_blocking(work: Callable[..., T], *args: Any) -> T:
    """Run what blocks (file writes) away from the event loop."""
    return await asyncio.to_thread(work, *args)


async def shielded(work: Later[T]) -> T:
    """Finish the work even if this task is cancelled meanwhile; the cancellation follows."""
    task = asyncio.ensure_future(work)
    _keep.add(task)
    task.add_done_callback(_keep.discard)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:  # noqa: PERF203
            if task.cancelled():
                raise
            cancelled = exc
        except BaseException:
            if cancelled is None:
                raise
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen
        raise cancelled
    return task.result()


# -- answers --------------------------------------------------------------------------------------

Waiter = asyncio.Future


def new_waiter() -> Waiter[Any]:
    """The place where one caller's answer will be put."""
    return asyncio.get_running_loop().create_future()


async def answer(waiter: Waiter[T]) -> T:
    """Wait for the answer."""
    return await waiter


class Signal:
    """Wakes the one task that waits for it."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the waiting task, now or when it next waits."""
        self._event.set()

    async def wait(self) -> None:
        """Wait until set, and reset."""
        await self._event.wait()
        self._event.clear()


class Slots:
    """A bounded number of places, given out first come first served."""

    __slots__ = ("_free", "_queue")

    def __init__(self, number: int) -> None:
        self._free = number
        self._queue: deque[asyncio.Future[None]] = deque()

    def try_take(self) -> bool:
        """Take a place if one is free and nobody waits."""
        if self._free > 0 and not self._queue:
            self._free -= 1
            return True
        return False

    async def take(self) -> None:
        """Wait for a place."""
        if self.try_take():
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.give(1)  # the place came at the same moment
            raise

    def give(self, number: int) -> None:
        """Give places back."""
        self._free += number
        while self._free > 0 and self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                self._free -= 1
                waiter.set_result(None)


# -- things that run beside -----------------------------------------------------------------------


class Worker:
    """A task of its own, for as long as the client is open."""

    __slots__ = ("_task",)

    def __init__(self, work: Callable[[], Later[None]], name: str) -> None:
        self._task = asyncio.get_running_loop().create_task(work(), name=name)

    async def join(self) -> None:
        """Wait for its end."""
        await asyncio.wait([self._task])

    def cancel(self) -> None:
        """Stop the work where it waits."""
        self._task.cancel()

    def ended(self) -> bool:
        """Whether it has ended, or was cancelled with its event loop."""
        return self._task.done()


class Timer:
    """Runs work once after a delay, unless cancelled before."""

    __slots__ = ("_handle",)

    def __init__(self, handle: asyncio.TimerHandle) -> None:
        self._handle = handle

    def cancel(self) -> None:
        """Forget the work, unless it has begun."""
        self._handle.cancel()


class Timers:
    """Starts work after a delay."""

    __slots__ = ()

    def after(self, seconds: float, work: Callable[[], Later[None]]) -> Timer:
        """Run the work in `seconds` from now."""
        return Timer(asyncio.get_running_loop().call_later(seconds, self._start, work))

    def _start(self, work: Callable[[], Later[None]]) -> None:
        task = asyncio.ensure_future(work())
        _keep.add(task)
        task.add_done_callback(_keep.discard)

    def close(self) -> None:
        """Nothing to do: pending timers go with the event loop."""
