"""The publisher: turns what was read into the next generation, or into a complaint.

1. What cannot be used is told, by file and line, and the generation in force stays.
2. What is the same as before is no new generation; but what there was to complain of is over.
3. All else becomes the next generation, apart from what needs a restart, and goes to every process.
"""

import os
import time
from collections.abc import Sequence

import structlog

from sniproxy.capacity import connection_limit
from sniproxy.config.model import Config
from sniproxy.config.yaml_source import BadInputError, Problem
from sniproxy.net.listener import CannotOpenError
from sniproxy.observe.metrics import LIMIT, RELOAD_SUCCESS, RELOAD_TIME, RULES, WARNINGS, slot_of
from sniproxy.observe.sinks import open_sink
from sniproxy.reload.channel import Parcel
from sniproxy.reload.fanout import Fanout
from sniproxy.reload.generation import Generation, Reading, Unreadable
from sniproxy.reload.reader import ReaderFailedError
from sniproxy.reload.reloader import NO_POLICY, Result
from sniproxy.reload.settle import settle

_log = structlog.get_logger()

# Of problems, warnings and changed files, in the log.
_TOLD = 20


def first_reading(result: Result) -> Reading:
    """What to start with. Raises BadInputError, or CannotOpenError where it is not the files that are at fault."""
    outcome = result.outcome
    if isinstance(outcome, Unreadable):
        raise BadInputError(outcome.problems)
    if isinstance(outcome, ReaderFailedError):
        raise CannotOpenError(str(outcome))
    if failure := _log_failure(_log_paths(outcome.config)):
        raise CannotOpenError(failure)
    return outcome


def _log_paths(config: Config) -> list[str]:
    return [log.path for log in config.access_log]


def _log_failure(paths: Sequence[str]) -> str:
    """Why an access log cannot be written, if so. Every worker will open it, and should not be the one to find out."""
    for path in paths:
        try:
            open_sink(path, lambda _: None).close()
        except OSError as error:
            return f"cannot write access_log.path {path}: {(error.strerror or str(error)).lower()}"
    return ""


class Publisher:
    """Makes generations, for `workers` workers, and publishes them by `fanout`.

    `slots` are the supervisor's own, for the metrics that tell of reloading.
    """

    def __init__(self, reading: Reading, policy: int, workers: int, fanout: Fanout, slots: "memoryview[float]") -> None:
        """Publish the first generation. `policy` is its descriptor, and ours from now on."""
        self._workers = workers
        self._fanout = fanout
        self._slots = slots
        self._read = reading  # the last good one
        self._untold: Result | None = None  # which is not in force everywhere yet
        self.generation = self._publish(1, reading.config, policy, connection_limit(reading.config, workers))
        _tell_warnings(reading.warnings)

    @property
    def rules(self) -> int:
        return self._read.rules

    def take(self, result: Result) -> None:
        """A reading has come to its end."""
        outcome = result.outcome
        if isinstance(outcome, Reading):
            self._take_reading(outcome, result)
            return
        self._refuse(result, outcome.problems if isinstance(outcome, Unreadable) else (outcome,))

    def _take_reading(self, reading: Reading, result: Result) -> None:
        if (reading.config, reading.digest) == (self._read.config, self._read.digest):
            self._drop(result, success=True)
            _log.info("reload found nothing new", generation=self.generation.number, files=result.files[:_TOLD])
            return
        running = self.generation.config
        other_logs = [path for path in _log_paths(reading.config) if path not in _log_paths(running)]
        if failure := _log_failure(other_logs):
            self._refuse(result, (failure,))
            return
        config, told = settle(running, reading.config)
        self._read = reading
        self._untold = result
        has_limit = config.limits.connections == running.limits.connections
        limit = self.generation.connection_limit if has_limit else connection_limit(config, self._workers)
        self.generation = self._publish(self.generation.number + 1, config, result.policy, limit)
        for change in told:
            _log.warning("a change needs a restart", change=change)
        _tell_warnings(reading.warnings)

    def _publish(self, number: int, config: Config, policy: int, limit: int) -> Generation:
        generation = Generation(number, config, limit, policy)
        self._fanout.publish(Parcel(generation))
        self._slots[slot_of(RELOAD_SUCCESS)] = 1.0
        self._slots[slot_of(RELOAD_TIME)] = time.time()
        self._slots[slot_of(LIMIT)] = float(limit)
        self._slots[slot_of(RULES)] = float(self._read.rules)
        self._slots[slot_of(WARNINGS)] = float(len(self._read.warnings))
        return generation

    def _refuse(self, result: Result, problems: Sequence[Problem | Exception | str]) -> None:
        self._drop(result, success=False)
        _log.error(
            "reload failed",
            problems=[str(problem) for problem in problems[:_TOLD]],
            more=max(0, len(problems) - _TOLD),
            files=result.files[:_TOLD],
            consequence=f"generation {self.generation.number} stays in force",
        )

    def _drop(self, result: Result, *, success: bool) -> None:
        self._slots[slot_of(RELOAD_SUCCESS)] = float(success)
        if result.policy != NO_POLICY:
            os.close(result.policy)

    def tell_if_in_force(self) -> None:
        """Say that a generation is in force, once it is in every process."""
        if self._untold is None or not self._fanout.is_complete():
            return
        result, self._untold = self._untold, None
        _log.info(
            "reloaded",
            generation=self.generation.number,
            rules=self._read.rules,
            ignored=len(self._read.ignored),
            seconds=round(time.monotonic() - result.since, 3),
            files=result.files[:_TOLD],
        )


def _tell_warnings(warnings: Sequence[Problem]) -> None:
    for warning in warnings[:_TOLD]:
        _log.warning("doubtful input", problem=str(warning))
    if len(warnings) > _TOLD:
        _log.warning("more doubtful input", count=len(warnings) - _TOLD, mend="see all of it with `sniproxy check`")
