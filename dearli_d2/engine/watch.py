"""The ranks of a run watch each other, so that a dead or hanging one ends the run with a line that names it.

torch's process groups see neither in time: a rank waits for another one inside of a collective, for up to half an hour. So each
rank has a thread that tells rank 0 every second where its training stands, over a connection of its own. The system closes the
connection of a process that ends in any way.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlparse

import torch.distributed as dist

from ..config.run_sections import Ranks
from ..reporting import FAILED, end_process

logger = logging.getLogger(__name__)

# what ranks do in a step, in order: of two ranks the one that is not as far holds the other up
PHASES = ("starting", "loading images", "labelling", "training", "saving", "evaluating")
GRACE = 3.0  # seconds in which a rank that saw another one end may still tell an error of its own
_TICK = 1.0  # seconds between two signs of life
_ADVICE = "all ranks end, and --resume continues the run"
_connections: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_watch: Watch | None = None  # of this process


def mark(step: int, phase: str) -> None:
    """Notes where this rank stands, see `PHASES`; without other ranks it does nothing.

    Args:
        step: counted from 0.
    """
    if _watch is not None:
        _watch.place = step, PHASES.index(phase), time.time()


def tick() -> None:
    """Notes that this rank gets on inside of a phase."""
    if _watch is not None:
        _watch.place = (*_watch.place[:2], time.time())


def settle() -> None:
    """Waits until the watch has said which rank is lost; for a rank whose collective has failed for that reason."""
    if _watch is not None:
        time.sleep(2 * GRACE)  # the watch ends this process meanwhile


@dataclass
class RankState:
    """Knowledge about a rank. Times are seconds of this machine's clock.

    Attributes:
        rank, machine, process: its number, host name, process number.
        heard: when its last line came.
        step, phase: where it stands; the phase as an index into `PHASES`.
        moved: when it came there, or last got on there.
        ended: it is done.
        lost: when it ended without being done; None = it has not.
        reason: its error, if it could say it.
    """

    rank: int
    machine: str
    process: int
    heard: float
    step: int = 0
    phase: int = 0
    moved: float = 0.0
    ended: bool = False
    lost: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.process} on {self.machine})"

    @property
    def stand(self) -> str:
        """Its place in the training, in words."""
        return PHASES[0] if self.phase == 0 else f"in step {self.step + 1}, {PHASES[self.phase]}"


def judge(ranks: Iterable[RankState], now: float, limits: Ranks, grace: float = GRACE) -> str | None:
    """Says which rank the others wait for in vain.

    Args:
        ranks: all of the run; a rank that does not see all of them gives those that it sees, and no hanging one is found.
        now: seconds of the clock.
        limits: RANKS.DEAD_TIMEOUT, RANKS.HANG_TIMEOUT.
        grace: seconds after the loss of a rank.

    Returns:
        The message, or None if all is well.
    """
    ranks = list(ranks)
    for state in ranks:
        if state.lost is not None and now - state.lost >= grace:
            return f"{state} ended at {_clock(state.lost)}, {state.stand}{f': {state.reason}' if state.reason else f'; {_ADVICE}'}"
    live = [state for state in ranks if not state.ended and state.lost is None]
    for state in live:
        if now - state.heard > limits.dead_timeout:
            return (
                f"{state} has given no sign of life since {_clock(state.heard)}, {state.stand} (RANKS.DEAD_TIMEOUT "
                f"{limits.dead_timeout:g} s); {_ADVICE}"
            )
    if len(live) > 1 and all(now - state.moved > limits.hang_timeout for state in live):
        least = min((state.step, state.phase) for state in live)
        behind = [state for state in live if (state.step, state.phase) == least]
        who = ", ".join(map(str, behind[:4])) + (f" and {len(behind) - 4} more" if len(behind) > 4 else "")
        have = "has" if len(behind) == 1 else "have"
        since = max(state.moved for state in behind)
        return (
            f"{who} {have} not got on since {_clock(since)}, {behind[0].stand} (RANKS.HANG_TIMEOUT "
            f"{limits.hang_timeout:g} s); {_ADVICE}"
        )
    return None


class Watch:
    """Watches the other ranks until it is stopped, and ends this process if one of them is lost.

    Rank 0 sees all, and tells the others. They see rank 0.

    Args:
        rank, world: of the process group.
        store: of the process group, through which rank 0 tells its address.
        url: where the processes of the group meet.
        limits: when a rank counts as dead or hanging.
        told_to_end: another program ends this process by SIGTERM when a rank is lost; it then says why first.
    """

    def __init__(self, rank: int, world: int, store: dist.Store, url: str, limits: Ranks, told_to_end: bool) -> None:
        global _watch
        self.rank, self.limits = rank, limits
        self.place: tuple[int, int, float] = (0, 0, time.time())
        self._own = RankState(rank, socket.gethostname(), os.getpid(), time.time())
        self._peers: dict[socket.socket, RankState | None] = {}
        self._buffers: dict[socket.socket, bytes] = {}
        self._farewell: str | None = None  # "" = done, else an error
        self._terminated: float | None = None
        self._selector = selectors.DefaultSelector()
        self._waker, wake = socket.socketpair()
        self._listener: socket.socket | None = None
        self._register(wake, self._woken)
        for end in (wake, self._waker):
            end.setblocking(False)
        self._handler: Any = None
        self.told_to_end = told_to_end
        if told_to_end:
            self._handler = signal.signal(signal.SIGTERM, lambda *_: None)  # the thread acts, this one may be busy
            signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        if rank == 0:
            both = socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if both else socket.AF_INET
            self._listener = listener = socket.create_server(("", 0), family=family, backlog=world, dualstack_ipv6=both)
            self._register(listener, self._accept)
            self._token = secrets.token_hex(16)
            store.set("watch", json.dumps([_addresses(url), listener.getsockname()[1], self._token]))
        else:
            self._connect(store)
        _connections.add(self._waker)
        self._thread = threading.Thread(target=self._run, name="watch of the ranks", daemon=True)
        self._thread.start()
        _watch = self

    def stop(self, error: str = "") -> None:
        """Ends the watch.

        Args:
            error: why this rank ends before it is done; the others then end too. "" = it is done.
        """
        global _watch
        _watch = None
        self._farewell = " ".join(error.split())
        with suppress(OSError):
            self._waker.send(b"\0")
        self._thread.join(5.0)
        if self.told_to_end:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, self._handler or signal.SIG_DFL)

    # ------------------------------------------------------------------------------------------ connections

    def _register(self, end: socket.socket, act: Any) -> None:
        _connections.add(end)
        self._selector.register(end, selectors.EVENT_READ, act)

    def _connect(self, store: dist.Store) -> None:
        store.wait(["watch"], timedelta(seconds=self.limits.start_timeout))
        hosts, port, token = json.loads(store.get("watch"))
        for host in hosts:
            with suppress(OSError):
                end = socket.create_connection((host, port), timeout=5.0)
                self._register(end, self._read)
                self._peers[end] = RankState(0, host, 0, time.time())
                hello = {"token": token, "rank": self.rank}
                self._send(end, hello | self._state())
                return
        logger.warning(
            "rank %d cannot reach rank 0 at %s, port %d: it notices the loss of other ranks by torch's time-out alone",
            self.rank,
            " or ".join(hosts),
            port,
        )

    def _accept(self, listener: socket.socket) -> None:
        end, _ = listener.accept()
        end.settimeout(5.0)
        self._register(end, self._read)
        self._peers[end] = None  # it has not said who it is

    def _read(self, end: socket.socket) -> None:
        data = b""
        with suppress(OSError):
            data = end.recv(1 << 16)
        *lines, self._buffers[end] = (self._buffers.get(end, b"") + data).split(b"\n")
        state = self._peers[end]
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if not isinstance(message, dict):
                continue
            if state is None and message.get("token") == self._token:  # else somebody else has found the port
                state = self._peers[end] = RankState(message["rank"], "", 0, time.time())
            if state is not None:
                self._take(state, message)
        if not data:
            self._selector.unregister(end)
            end.close()
            if state is None:
                del self._peers[end]
            elif not state.ended and state.lost is None:
                state.lost = time.time()

    def _take(self, state: RankState, message: dict[str, Any]) -> None:
        state.heard = time.time()
        if "verdict" in message:
            self._end(message["verdict"])
        if "process" in message:
            state.machine, state.process = message["machine"], message["process"]
            state.step, state.phase, state.moved = message["step"], message["phase"], state.heard - message["idle"]
        if "farewell" in message:
            state.ended, state.reason = not message["farewell"], message["farewell"]
            if state.reason:
                state.lost = state.heard

    def _woken(self, wake: socket.socket) -> None:
        with suppress(OSError):
            if signal.SIGTERM in wake.recv(4096) and self.told_to_end:
                self._terminated = self._terminated or time.time()

    def _state(self) -> dict[str, Any]:
        step, phase, moved = self.place
        own = self._own
        own.heard = time.time()
        own.step, own.phase, own.moved = step, phase, moved
        return {"machine": own.machine, "process": own.process, "step": step, "phase": phase, "idle": own.heard - moved}

    def _send(self, end: socket.socket, message: dict[str, Any]) -> None:
        with suppress(OSError):  # the end of a connection is seen where it is read
            end.sendall(json.dumps(message).encode() + b"\n")

    def _tell(self, message: dict[str, Any]) -> None:
        for end, state in list(self._peers.items()):
            if state is not None and state.lost is None and end.fileno() >= 0:
                self._send(end, message)

    # ------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        before, told = time.time(), 0.0
        while self._farewell is None:
            self._hear()
            now = time.time()
            if now - before > 10 * _TICK:  # this process itself stood still and has heard nobody
                for state in self._known():
                    state.heard += now - before
            before = now
            if now - told >= _TICK:
                told = now
                self._tell(self._state())
            self._judge(now)
        self._tell({"farewell": self._farewell})
        until = time.time() + GRACE  # rank 0 closes no connection before it has read the farewell at its other end
        while self.rank == 0 and not self._farewell and time.time() < until:
            if all(state.ended or state.lost for state in self._known()):
                break
            self._hear()
        for end in (*self._peers, *([self._listener] if self._listener else ())):
            end.close()

    def _hear(self) -> None:
        for key, _ in self._selector.select(_TICK / 2):
            with suppress(OSError):
                key.data(key.fileobj)

    def _known(self) -> list[RankState]:
        return [state for state in self._peers.values() if state is not None]

    def _judge(self, now: float) -> None:
        known = self._known()
        if self._listener is not None:  # it sees all
            self._state()
            known.append(self._own)
        verdict = judge(known, now, self.limits, 0.0 if self._terminated else GRACE)
        if verdict is not None:
            self._tell({"verdict": verdict})
            self._end(verdict)
        if self._terminated is not None and now - self._terminated > GRACE / 2:
            self._end("ended by SIGTERM", 128 + signal.SIGTERM)

    def _end(self, message: str, status: int = FAILED) -> None:
        """Ends this process, whose main thread may never return from a collective."""
        if self._listener is not None:  # the others read the verdict before they see the connection end
            time.sleep(_TICK)
        end_process(message, status)


def _addresses(url: str) -> list[str]:
    """Names and addresses under which others may reach this machine, the likeliest first."""
    parts = urlparse(url)
    meeting = os.environ.get("MASTER_ADDR", "") if url.startswith("env:") else parts.hostname or ""
    found = [socket.gethostname()]
    with suppress(OSError):
        found.append(socket.gethostbyname(found[0]))
    if meeting:
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((meeting, 9))  # sends nothing; the system chooses the address of this machine on that route
            found.append(probe.getsockname()[0])
    return list(dict.fromkeys(filter(None, (meeting, *found))))


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _forget_connections() -> None:
    """In a forked worker: its copies would keep the connections of a dead rank open, and its signals are its own."""
    global _watch
    if _watch is not None and _watch.told_to_end:
        with suppress(ValueError):
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _watch = None
    for end in list(_connections):
        with suppress(OSError):
            end.close()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_connections)
