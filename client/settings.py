"""What is set in a site's site.toml, and the file itself, every key with what it means."""

from __future__ import annotations

import tomli_w
from pydantic import Field

from polyclinic.client.policy import CACHE_MB, Kind, Policy
from polyclinic.core.config import Config

LOCAL_PORT = 9480
_NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$"
_KEY = r"^[0-9a-f]{64}$"


class Coordinator(Config):
    """Where the coordinator is, and the key under which it signs."""

    host: str = Field(min_length=1, max_length=253)
    fleet_port: int = Field(ge=1, le=65535)
    governance_port: int = Field(ge=1, le=65535)
    key: str = Field(pattern=_KEY)

    def address(self, port: int) -> str:
        """HOST:PORT, as an address of the internet is written."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


class DataPlace(Config):
    """Where the images are listed, those that cannot be read, and how much disk what is remembered of them may take."""

    manifest: str = Field(min_length=1)
    quarantine: str | None = Field(default=None, min_length=1)
    cache_mb: int = Field(default=CACHE_MB, ge=0)


class Rules(Config):
    """See ``polyclinic.client.policy.Policy``; which studies are approved is told by the book."""

    minimum_patients: int = Field(default=10, ge=1)
    tell: tuple[Kind, ...] = ("outcome", "features", "kernel", "intensities", "labels", "acquisition")
    epsilon: float | None = Field(default=None, gt=0.0)
    delta: float = Field(default=1e-5, gt=0.0, lt=1.0)

    def policy(self, *studies: str) -> Policy:
        """The rules with the digests of approved ``studies``."""
        return Policy(**dict(self), studies=studies)


class Settings(Config):
    """site.toml: see the comments of ``render``."""

    name: str = Field(pattern=_NAME)
    key: str = Field(pattern=_KEY)
    proxy: str | None = Field(default=None, pattern=r"^http://[^\s/]+$")
    local_port: int = Field(default=LOCAL_PORT, ge=1, le=65535)
    network_user: str | None = Field(default=None, min_length=1)
    coordinator: Coordinator
    data: DataPlace
    policy: Rules = Rules()

    def render(self) -> str:
        """The text of site.toml, every key with what it means."""
        at, quoted = self.coordinator, _quoted
        kinds = ", ".join(quoted(kind) for kind in self.policy.tell)
        return f"""\
# What this site is and what it allows. After a change: polyclinic site doctor, then restart the site.

# The name under which the site was invited. Its certificate is made out to it: leave it as it is.
name = {quoted(self.name)}
# The public half of private/signing.key, under which this site's book and replies are checked: leave it as it is.
key = {quoted(self.key)}

# The HTTP proxy through which the coordinator is reached, such as "http://proxy.example:3128". Without this key,
# connections are direct (or as the environment's https_proxy says).
{f"proxy = {quoted(self.proxy)}" if self.proxy else '# proxy = "http://proxy.example:3128"'}

# A free port, used on this machine alone (127.0.0.1): there the agent takes what the network process received.
local_port = {self.local_port}

# The operating-system user as whom everything that faces the network runs; it needs no right to any image. The site
# is then started by root. Without this key, all of the site runs as whoever starts it.
{f"network_user = {quoted(self.network_user)}" if self.network_user else '# network_user = "polyclinic-net"'}

# The coordinator: the one host, and the two ports of it, that this site opens connections to.
[coordinator]
host = {quoted(at.host)}
fleet_port = {at.fleet_port}
governance_port = {at.governance_port}
# The key under which the coordinator signs studies and receipts. A change of it is a change of coordinator.
key = {quoted(at.key)}

[data]
# A CSV with one line an image; a relative path starts from this file's folder. See: polyclinic site data check
manifest = {quoted(self.data.manifest)}
# A CSV of images to leave out, because they cannot be read. See: polyclinic site data check --quarantine quarantine.csv
{f"quarantine = {quoted(self.data.quarantine)}" if self.data.quarantine else '# quarantine = "quarantine.csv"'}
# MiB of the folder cache beside this file: what frozen parts of a backbone make of this site's images, so that it is
# worked out once. It is as confidential as the images, never leaves, and may be deleted at any time. 0: none.
cache_mb = {self.data.cache_mb}

[policy]
# No figure over fewer patients than this leaves the site. The trained weights and the numbers of images and patients
# leave in any case.
minimum_patients = {self.policy.minimum_patients}
# The kinds of statistics that may leave at all. What is not listed is neither told nor missed:
#   outcome       how good the model is here: counts of right and wrong, losses, reliability bins, score histograms;
#                 of segmentations overlaps and volumes, of detections hits by score
#   features      mean and covariance of projected features of the frozen backbone
#   kernel        the same of random Fourier features, for a test of whether this site's images differ from the others'
#   intensities   a histogram of grey values
#   labels        images and patients a class
#   acquisition   patients by maker, modality, and ranges of kVp, field strength, slice thickness and pixel spacing
tell = [{kinds}]
# The most that may ever be spent on any patient, over all studies (epsilon, by patient, add or remove one), at delta.
# With a limit, no study takes part that has no privacy. See: polyclinic privacy show
{f"epsilon = {self.policy.epsilon!r}" if self.policy.epsilon is not None else "# epsilon = 8.0"}
delta = {self.policy.delta!r}
"""


def _quoted(text: str) -> str:
    """As a string of TOML."""
    return tomli_w.dumps({"key": text}).removeprefix("key = ").strip()
