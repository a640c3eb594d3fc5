"""Sites whose replies come twice, late and in another order: what a network does to messages, seen above TLS."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from polyclinic.server.receive import Delivery
from polyclinic.server.rounds import Sites


class Duplicating:
    """Wraps ``sites``: whatever they deliver is delivered in a shuffled order, some of it twice or three times.

    Deliveries of earlier rounds turn up again in later ones, as a network that holds messages back would have it.

    Args:
        sites: those that really answer.
        seed: the same seed gives the same disorder.
        share: chance that a delivery comes again.
        late: chance that a delivery of an earlier round comes in this one.
    """

    def __init__(self, sites: Sites, seed: int, share: float = 0.5, late: float = 0.5) -> None:
        self._sites, self._random, self._share, self._late = sites, random.Random(seed), share, late
        self._earlier: list[Delivery] = []
        self.extra = 0

    def names(self) -> Sequence[str]:
        """See ``Sites``."""
        return self._sites.names()

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        """See ``Sites``; ``extra`` counts what was delivered beyond what the sites gave."""
        came = list(self._sites.send(message, to, deadline))
        again = [one for one in came for _ in range(2) if self._random.random() < self._share]
        again += [one for one in self._earlier if self._random.random() < self._late]
        self._earlier, self.extra = came, self.extra + len(again)
        everything = came + again
        self._random.shuffle(everything)
        yield from everything
