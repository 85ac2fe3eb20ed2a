"""What a report takes from a run's `log.txt`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

_RECORD = re.compile(r"\[(\d\d)/(\d\d) (\d\d):(\d\d):(\d\d)\] (\S+) ([A-Z]+): (.*)")
_DATASET = re.compile(r"(\S+): (\d+) images, (.+)")
_MEMORY = re.compile(r"\biter: (\d+)\b.*\bmax_mem: (\d+)M")
_LONGEST = 500  # characters of a warning


@dataclass
class Log:
    """The content of a log.

    Attributes:
        environment: name and value, such as ("torch", "2.10.0"), as the last process wrote them.
        commands: the command line of each process, oldest first; earlier versions wrote none.
        datasets: {name: (number of images, what else was found out)}.
        own_data: the description of own data, lines with a table.
        warnings: {(level, message): how often}.
        memory: {step: most memory of the GPU in MB}.
        seconds: of all processes together.
        sessions: number of processes that wrote to it, one after the other.
        last: month/day and time of the last line.
    """

    environment: list[tuple[str, str]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    datasets: dict[str, tuple[int, str]] = field(default_factory=dict)
    own_data: str = ""
    warnings: Counter[tuple[str, str]] = field(default_factory=Counter)
    memory: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    sessions: int = 0
    last: str = ""


def read_log(path: Path) -> Log:
    """Reads a log. Lines that are no part of a record are left out."""
    log, clock = Log(), _Clock()
    with path.open(encoding="utf-8", errors="replace") as stream:
        begin, record = None, None
        body: list[str] = []
        for line in stream:
            found = _RECORD.match(line.rstrip("\n"))
            if not found:
                body.append(line.rstrip("\n")[:_LONGEST])
                if line.startswith("error: "):  # of a process that was ended by the system
                    log.warnings["ERROR", line.strip()[7:_LONGEST]] += 1
                continue
            if record:
                _take(log, record, body)
            record, body = found, []
            now = clock.read(found)
            if begin is None or found[8] == "environment:":
                log.sessions += 1
            else:
                log.seconds += (now - begin).total_seconds()
            begin = now
        if record:
            _take(log, record, body)
            log.last = f"{record[1]}/{record[2]} {record[3]}:{record[4]}:{record[5]}"
    return log


class _Clock:
    """Times of the log, which has no year."""

    def __init__(self) -> None:
        self.year, self.last = 2000, datetime.min

    def read(self, record: re.Match[str]) -> datetime:
        try:
            month, day, hour, minute, second = (int(number) for number in record.groups()[:5])
            now = datetime(self.year, month, day, hour, minute, second)
        except ValueError:  # the line is damaged
            return self.last
        if self.last - now > timedelta(days=180):  # a new year has begun; 2000 to 2003 have one leap day
            self.year += 1
            return self.read(record)
        self.last = now
        return now


def _take(log: Log, record: re.Match[str], body: list[str]) -> None:
    module, level, message = record.groups()[5:]
    if level in ("WARNING", "ERROR", "CRITICAL"):
        log.warnings[level, message[:_LONGEST]] += 1
    elif message == "environment:":
        rows = (re.split(r" {2,}", line, maxsplit=1) for line in body)
        log.environment = [(row[0], row[1]) for row in rows if len(row) == 2]
    elif message.startswith("command: "):
        log.commands.append(message[len("command: ") :])
    elif message.startswith("own data in "):
        log.own_data = "\n".join([message, *body])
    elif (step := _MEMORY.search(message)) is not None:
        log.memory[int(step[1])] = float(step[2])
    elif module.startswith("dearli_d2.") and (found := _DATASET.fullmatch(message)) is not None:
        log.datasets[found[1]] = int(found[2]), found[3]
