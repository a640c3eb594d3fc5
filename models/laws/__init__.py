"""What must hold of any adaptation, task and backbone, whoever wrote it: plain functions for any test runner.

Each raises an AssertionError that says in a sentence which law is broken. They take a study that uses the plugin, the
smaller the backbone the better; ``polyclinic.core.laws`` has those of statistics, strategies and server steps.
"""

from polyclinic.models.laws.adaptation import check_adaptation
from polyclinic.models.laws.backbone import check_backbone
from polyclinic.models.laws.task import check_task

__all__ = ["check_adaptation", "check_backbone", "check_task"]
