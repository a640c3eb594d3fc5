"""What the link fetches: each piece is checked for who signed it and for its form before it is put into the inbox."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from polyclinic.client.governance import Client
from polyclinic.client.home import Home
from polyclinic.client.offer import opened_offer, signed_text
from polyclinic.client.outbox import Inbox
from polyclinic.client.witness import demand_run, head, receipt, take_lines
from polyclinic.core import files
from polyclinic.core.errors import PolyclinicError, TrustError
from polyclinic.core.governance.wire import LINES
from polyclinic.core.signing import Signed, demand_key, demand_site, opened

MOST_STUDIES, MOST_RUNS, MOST_SITES, MOST_PAGES = 200, 50, 1000, 20
"""How much is taken at one time: a coordinator must not fill a site's disk."""
MOST_LINES = 200_000
"""Lines of one ledger that are kept."""
ACTIVE = ("wanted", "running", "paused")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Delivery:
    """Fetches for one site.

    Attributes:
        news: whether something came that a witness should look at.

    Args:
        alarm: told of what must not be.
        complain: told (about what, what is wrong); "" once it is in order.
    """

    def __init__(
        self, home: Home, inbox: Inbox, alarm: Callable[[str], None], complain: Callable[[str, str], None]
    ) -> None:
        self._home, self._inbox, self._alarm, self._complain = home, inbox, alarm, complain
        self._key = home.settings.coordinator.key
        self._runs: list[tuple[str, str]] = []
        self._done: set[tuple[str, str]] = set()
        self._failing: set[str] = set()
        self.news = True

    def studies(self, client: Client) -> None:
        """Brings ``shared/studies`` up to what is offered, and learns which runs there are."""
        reply = client.studies()
        offered: set[str] = set()
        for message in reply.offers[:MOST_STUDIES]:
            signed = Signed(message.document, message.signer, message.signature)
            try:
                offered.add(self._offer(signed))
            except PolyclinicError as failure:
                self._complain("an offer", str(failure))
        for digest in {*reply.withdrawn} - offered:
            if _DIGEST.fullmatch(digest):
                (self._home.studies / f"{digest}.json").unlink(missing_ok=True)  # its text stays, to be read
        self._runs = []
        for run in reply.runs[:MOST_RUNS]:
            try:
                self._runs.append((demand_run(run.name), run.state[:20]))
            except TrustError as failure:
                self._complain("a run", str(failure))

    def runs(self, client: Client) -> None:
        """Fetches receipts and ledger lines of all runs that are on, and once more of those that have ended."""
        for run in sorted(self._runs, key=lambda run: run[0] in self._failing):
            if run not in self._done:
                name, state = run
                self._failing.add(name)  # if it fails, the others come first next time
                news = self._receipts(client, name) + self.lines(client, name)
                self._failing.discard(name)
                if state not in ACTIVE and not news:
                    self._done.add(run)

    def lines(self, client: Client, run: str) -> int:
        """Fetches what is new of one ledger ("": of the coordinator's book); how many lines."""
        total = 0
        for _ in range(MOST_PAGES):
            sequence, _digest = self._inbox.head(run)
            if sequence >= MOST_LINES:
                self._complain(f"ledger {run}", "the coordinator's ledger is longer than this site keeps")
                break
            count, problem = take_lines(self._inbox, run, client.lines(run, max(sequence, 0), LINES), self._key)
            total += count
            if problem:
                self._alarm(problem)
            if problem or not count:
                break
        self.news |= total > 0
        return total

    def heads(self, client: Client, now: float) -> None:
        """Fetches what other sites saw of the coordinator's ledgers; whose keys they are is learned once."""
        statements, signers = client.heads()
        known = self._signers(signers)
        sites = {key: site for site, key in known.items()}
        for signed in statements:
            site = sites.get(signed.signer)
            if site is None or site == self._home.settings.name:
                continue
            try:
                told = head(signed, site, signed.signer)
            except PolyclinicError as failure:
                self._complain(f"a head of {site}", str(failure))
                continue
            self._inbox.set_head(site, told["run"], told["sequence"], signed, now)
        self.news = True  # what was patiently waited for may be overdue by now

    def _signers(self, signers: dict[str, str]) -> dict[str, str]:
        """Site → its key as this site first saw it; another one now is an alarm."""
        known = self._inbox.signers() | {self._home.settings.name: self._home.settings.key}
        for site, key in list(signers.items())[:MOST_SITES]:
            try:
                demand_key(key)
                held = known.get(demand_site(site)) or self._inbox.trust(site, key)
            except TrustError as failure:
                self._complain("a site's key", str(failure))
                continue
            known[site] = held
            if held != key:
                whose = "this site's own key" if site == self._home.settings.name else f"the key of {site}"
                self._alarm(f"the coordinator says that {whose} is {key[:16]}…, but it was {held[:16]}…")
        return known

    def _offer(self, signed: Signed) -> str:
        """The digest of an offer by the coordinator, which is put where agent and command line look for it."""
        told = opened(signed, "offer", self._key)
        digest, text = told.get("study"), told.get("toml")
        if not isinstance(digest, str) or _DIGEST.fullmatch(digest) is None or not isinstance(text, str):
            raise TrustError("an offer names no study")
        held = {path.stem for path in self._home.studies.glob("*.json")}
        if digest not in held and len(held) >= MOST_STUDIES:
            raise TrustError("more studies are offered than this site keeps")
        for name, content in ((f"{digest}.toml", text), (f"{digest}.json", signed_text(signed))):
            place = self._home.studies / name
            if not place.is_file() or place.read_bytes() != content.encode():
                files.write(place, content)
                place.chmod(0o640)
        opened_offer(signed, self._key)  # one that cannot be taken up here can still be looked at
        return digest

    def _receipts(self, client: Client, run: str) -> int:
        total = 0
        for _ in range(MOST_PAGES):
            held = self._inbox.receipts(run)
            found, more = client.receipts(run, max(held, default=0))
            new = self._sound(run, found, max(held, default=0))
            if new:
                self._inbox.add_receipts(run, new)
            total += len(new)
            if not more or not new:
                break
        self.news |= total > 0
        return total

    def _sound(self, run: str, found: Sequence[Signed], after: int) -> dict[int, Signed]:
        new: dict[int, Signed] = {}
        for signed in found:
            try:
                number = opened(signed, "receipt", self._key).get("round")
                if type(number) is not int or not after < number < 2**31 or number in new:
                    raise TrustError("the receipt is of a round that was not asked for")
                receipt(signed, self._key, run, number)
            except TrustError as failure:
                self._alarm(f"the coordinator sent a receipt of {run} that is not to be trusted: {failure.problem}")
                continue
            new[number] = signed
        return new
