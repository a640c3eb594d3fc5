"""Whether a site can approve a study: its limits and its ledger, asked before anything runs."""

from __future__ import annotations

from contextlib import closing

from polyclinic.client.approvals import Limits
from polyclinic.client.data.manifest import read_manifest
from polyclinic.client.home import Home
from polyclinic.client.offer import Offer
from polyclinic.client.privacy.account import open_account
from polyclinic.client.privacy.budget import demand_within
from polyclinic.client.privacy.ledger import Ledger
from polyclinic.core.errors import PolicyError
from polyclinic.core.study import Study


def demand_possible(home: Home, offer: Offer, limits: Limits) -> None:
    """Nothing, if a whole run of the study fits into the site's limits.

    Raises:
        PolicyError: it does not, with the arithmetic; or a limit of privacy is set for a study without any.
    """
    study, rules = offer.study, home.settings.policy
    demand_some(study, limits)
    rules.policy().demand_privacy(study)
    if study.privacy is None or (rules.epsilon, limits.epsilon, study.privacy.limit) == (None, None, None):
        return
    from polyclinic.models import network

    rows = read_manifest(home.manifest, study.data, network.task(study), study.study.seed, only=home.settings.name)
    with closing(Ledger(home.privacy, home.key())) as ledger:
        account = open_account(ledger, study, home.settings.name, rows, rules.policy(), limits.epsilon)
        charges = account.charges(account.plan.releases)
        demand_within(ledger.record(), study.digest, charges, (), account.bounds)


def demand_some(study: Study, limits: Limits) -> None:
    """Raises PolicyError for a limit that nothing could keep."""
    if limits.epsilon is not None and study.privacy is None:
        problem = f"ε = {limits.epsilon:g} is to be the limit, and a study without [privacy] has no ε at all"
        raise PolicyError(problem, where="epsilon", remedy="leave the limit out, or ask for a study with [privacy]")
