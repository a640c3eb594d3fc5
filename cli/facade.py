"""Polyclinic: hospitals adapt a medical-imaging foundation model together while every image stays at home.

A whole federation in a few lines, here of two made-up hospitals (with images of your own, the manifest is yours):

>>> import polyclinic, pathlib, tempfile
>>> from polyclinic.simulations.centres import Centre, write_centres
>>> home = pathlib.Path(tempfile.mkdtemp())
>>> manifest = write_centres(home / "images", [Centre("north", 60), Centre("south", 50)], seed=1, size=32)
>>> _ = (home / "study.toml").write_text('''
... [study]
... name = "lesions"
... [data]
... image_size = 32
... colour = "grey"
... [task]
... method = "classification"
... classes = ["normal", "lesion"]
... [[adaptation]]
... method = "lora"
... [rounds]
... count = 1
... ''')
>>> study = polyclinic.load_study(home / "study.toml")
>>> run = polyclinic.simulate(study, data=manifest, run=home / "run")
>>> sorted(run.summary["sites"])
['north', 'south']
>>> run.summary["pooled"]["test"]["nll"]["value"] < 1.0
True
>>> [record["round"] for record in run.rounds]
[1]
>>> run.report.name, run.adapter.name
('report.html', 'adapter')

The model can be judged on images from elsewhere:

>>> others = write_centres(home / "others", [Centre("east", 60)], seed=2, size=32)
>>> found = polyclinic.evaluate(run, data=others, split="all")
>>> found["sites"]["east"]["n"]
{'images': 60, 'patients': 60}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from polyclinic.core.runs import Run
    from polyclinic.core.study import Study
    from polyclinic.server.rounds import Observer
    from polyclinic.simulations.compare.plan import Variant

__all__ = ["adapted", "compare", "demo_study", "evaluate", "load_study", "network", "read_run", "simulate"]


def load_study(path: Path | str) -> Study:
    """The study in a TOML file, frozen: its sections are attributes, ``digest`` names it, ``toml()`` writes it out.

    Raises:
        StudyError: whatever is wrong with the file.
    """
    from polyclinic.core import study

    return study.load(path)


def demo_study() -> Study:
    """The study that ``polyclinic demo`` runs.

    >>> demo_study().study.name
    'demo'
    """
    from polyclinic.simulations import demo

    return demo.demo_study()


def simulate(
    study: Study, data: Path | str, run: Path | str, *, observe: Observer | None = None, **options: Any
) -> Run:
    """Simulates ``study`` on the images of manifest ``data`` into the folder ``run``.

    Args:
        observe: called with every ``Event`` (its ``kind`` and what belongs to it) while the run goes on.
        options: ``engine``, ``workers``, ``ray_address``, ``baselines``, ``resume`` as on the command line, and
            ``policy``, a ``polyclinic.client.policy.Policy``; and ``quarantine``, the path of a list of images to leave
            out.

    Returns:
        The finished run: see ``read_run``.

    Raises:
        DataError, RunError, EngineError, BackboneError: what was wrong, where, and what to do.
    """
    from polyclinic.simulations.simulate import Options
    from polyclinic.simulations.simulate import simulate as carry_out

    return carry_out(study, Path(data), Path(run), Options(**options), observe or (lambda event: None))


def read_run(folder: Path | str) -> Run:
    """A finished run, with the attributes

    - ``folder``, ``adapter``, ``report``: the paths of its folder, of the adapter in it (in peft's format: a folder)
      and of its report (one HTML file);
    - ``study``: the study that was run;
    - ``summary``: summary.json, the run in figures; ``rounds``: rounds.jsonl, one dictionary a round. Their keys are
      described in docs/run-folder.md and by the JSON schemas in ``polyclinic/server``.

    Raises:
        RunError: the folder holds no run, or one that has not finished.
    """
    from polyclinic.core import runs

    return runs.read(folder)


def evaluate(run: Run, data: Path | str, split: str = "test") -> dict[str, Any]:
    """The run's model judged on the images of manifest ``data``, whatever their sites.

    Args:
        split: "train", "val", "test", or "all" for every image.

    Returns:
        ``sites``: site → ``n`` (images and patients), ``metrics`` (name → value, low, high, bound: see
        docs/run-folder.md) and ``reliability`` (bins); ``pooled``: the same over all sites, without ``n``; and
        ``study_digest``, ``adapter_sha256``, ``split``, which say what was judged.

    Raises:
        DataError: the manifest cannot be used, or no image is in that split.
        RunError: the run's adapter is missing or damaged.
    """
    from polyclinic.simulations.evaluate import evaluate as judge

    return judge(run, Path(data), split)


def compare(
    study: Study, data: Path | str, methods: str | Sequence[Variant], run: Path | str, **options: Any
) -> dict[str, Any]:
    """Methods compared on the images of manifest ``data``, over six measured axes; see docs/trade-offs.md.

    Args:
        methods: such as ``"lora,probe,lora+fedprox"``, or ``polyclinic.simulations.compare.plan.Variant`` records.
        run: the folder of the comparison; it gets ``compare.json`` and ``compare.html``.
        options: ``seeds``, ``axes``, ``most``, ``workers``, ``resume`` as on the command line, and ``policy``, a
            ``polyclinic.client.policy.Policy``.

    Returns:
        compare.json: its schema is ``polyclinic/simulations/compare/compare.schema.json``.

    Raises:
        StudyError, DataError, RunError, EngineError: what was wrong, where, and what to do.
    """
    from polyclinic.simulations.compare.compare import Settings
    from polyclinic.simulations.compare.compare import compare as carry_out
    from polyclinic.simulations.compare.plan import named

    variants = named(methods) if isinstance(methods, str) else tuple(methods)
    return carry_out(study, Path(data), variants, Path(run), Settings(**options))


def adapted(study: Study, adapter: Path | str) -> nn.Module:
    """The study's network with the adapter in a folder: pixels in [0, 1] → outputs; whatever made the adapter.

    Raises:
        RunError: no adapter there, one of another study, or a damaged one.
    """
    from polyclinic.models.export import load_adapted

    return load_adapted(study, Path(adapter))


def network(study: Study) -> nn.Module:
    """The study's backbone and head before adaptation: what ``PeftModel.from_pretrained`` wants as its base.

    >>> sum(weight.numel() for weight in network(demo_study()).head.parameters())  # weights and bias of the head
    385
    """
    from polyclinic.models.network import plain

    return plain(study)
