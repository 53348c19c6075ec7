"""What access logs say in all, read file by file, so that a soak's log need not be kept."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.traffic import number_of

FINAL = frozenset({"close", "deny", "fail"})


@dataclass
class Tally:
    """Lines by what they tell. Connections are known by the addresses that `traffic` gives them."""

    opens: Counter[int] = field(default_factory=Counter)
    finals: Counter[int] = field(default_factory=Counter)
    reasons: dict[int, str] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)  # the connections of each worker that was lost

    def add(self, path: Path) -> None:
        """Count the lines of a file that nobody writes any more."""
        with path.open() as lines:
            for text in lines:
                line = json.loads(text)
                event = line["connectionEvent"]
                if event == "worker_lost":
                    self.lost.append(line["connections"])
                    continue
                number = number_of(line["sourceIp"])
                if event == "open":
                    self.opens[number] += 1
                else:
                    assert event in FINAL, line
                    self.finals[number] += 1
                    self.reasons[number] = line["reason"]
