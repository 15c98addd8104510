"""What the driver needs of threads. `_aio` is the same for asyncio, name by name."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any, Generic, TypeVar

T = TypeVar("T")
Later = Annotated[T, "at once"]
"""What a function of this colour gives back at first."""

Cancelled = (KeyboardInterrupt, SystemExit)
"""What ends a caller from outside, as opposed to an error of its own."""

sleep = time.sleep

logger = logging.getLogger("routeledger")


def pause() -> None:
    """Let every caller that is ready run once."""
    time.sleep(0.0001)


def give_way() -> None:
    """Let whoever waits for a connection that was given back get it and send."""
    time.sleep(0)


def run_blocking(work: Callable[..., T], *args: Any) -> T:
    """Run what blocks: a thread may block."""
    return work(*args)


def shielded(result: T) -> T:
    """The work is done by the time it is passed here."""
    return result


# -- answers --------------------------------------------------------------------------------------


class Waiter(Generic[T]):
    """The place where one caller's answer will be put."""

    __slots__ = ("_error", "_lock", "_result")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        self._result: T | None = None
        self._error: BaseException | None = None

    def set_result(self, result: T) -> None:
        """Answer."""
        self._result = result
        self._lock.release()

    def set_exception(self, error: BaseException) -> None:
        """Answer with an error."""
        self._error = error
        self._lock.release()

    def done(self) -> bool:
        """Whether the answer is there."""
        return not self._lock.locked()

    def wait(self) -> T:
        """Wait for the answer."""
        self._lock.acquire()
        self._lock.release()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]


def new_waiter() -> Waiter[Any]:
    """The place where one caller's answer will be put."""
    return Waiter()


def answer(waiter: Waiter[T]) -> T:
    """Wait for the answer."""
    return waiter.wait()


class Signal:
    """Wakes the one thread that waits for it."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Wake the waiting thread, now or when it next waits."""
        if not self._event.is_set():
            self._event.set()

    def wait(self) -> None:
        """Wait until set, and reset."""
        self._event.wait()
        self._event.clear()


class Slots:
    """A bounded number of places."""

    __slots__ = ("_semaphore",)

    def __init__(self, number: int) -> None:
        self._semaphore = threading.Semaphore(number)

    def try_take(self) -> bool:
        """Take a place if one is free."""
        return self._semaphore.acquire(blocking=False)

    def take(self) -> None:
        """Wait for a place."""
        self._semaphore.acquire()

    def give(self, number: int) -> None:
        """Give places back."""
        if number > 0:
            self._semaphore.release(number)


# -- things that run beside -----------------------------------------------------------------------


class Worker:
    """A thread of its own, for as long as the client is open."""

    __slots__ = ("_thread",)

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._thread = threading.Thread(target=work, name=name, daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def cancel(self) -> None:
        """A thread cannot be stopped: it finishes its work."""

    def ended(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()


class Timer:
    """Runs work once after a delay, unless cancelled before."""

    __slots__ = ("cancelled", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.cancelled = False

    def cancel(self) -> None:
        """Forget the work, unless it has begun."""
        self.cancelled = True


class Timers:
    """Starts work after a delay, on one thread that exists from the first use on."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def after(self, seconds: float, work: Callable[[], None]) -> Timer:
        """Run the work in `seconds` from now."""
        timer = Timer(work)
        with self._changed:
            due = time.monotonic() + seconds
            heapq.heappush(self._heap, (due, next(self._count), timer))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="routeledger-timers", daemon=True
                )
                self._thread.start()
            elif self._heap[0][2] is timer:
                self._changed.notify()
        return timer

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._heap and self._heap[0][2].cancelled:
                    heapq.heappop(self._heap)
                if self._closed:
                    return
                wait = self._heap[0][0] - time.monotonic() if self._heap else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                timer = heapq.heappop(self._heap)[2]
            try:
                timer.work()
            except Exception:
                logger.exception("work on the timer thread failed")

    def close(self) -> None:
        """Forget all that is pending."""
        with self._changed:
            self._closed = True
            self._changed.notify()
