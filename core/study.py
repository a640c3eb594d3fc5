"""The study file: what is trained, on what, how, and what may travel. Typed, strict, and known by its digest."""

from __future__ import annotations

import hashlib
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import rfc8785
import tomli_w
from pydantic import BeforeValidator, Field, SerializeAsAny, field_serializer, field_validator, model_validator

from polyclinic.core.config import Config, Duration, Method, parse, resolve
from polyclinic.core.errors import StudyError
from polyclinic.core.facts import demand_chain
from polyclinic.core.privacy.central import Central, demand_central
from polyclinic.core.privacy.config import Privacy
from polyclinic.core.privacy.possible import demand_private

SPLITS = ("train", "val", "test")


class About(Config):
    """Name, purpose and the one seed from which every random choice is derived."""

    name: str = Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    description: str = Field(default="", max_length=2000)
    seed: int = Field(default=0, ge=0, lt=2**32)


class Columns(Config):
    """Which column of the manifest is which; ``split``, ``patient`` and ``mask`` may be absent from a manifest."""

    path: str = "path"
    site: str = "site"
    label: str = "label"
    split: str = "split"
    patient: str = "patient_id"
    mask: str = "mask"


class Split(Config):
    """Shares of patients for a manifest without a split column; the rest is test."""

    train: float = Field(default=0.7, gt=0.0, lt=1.0)
    val: float = Field(default=0.1, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _leave_room(self) -> Self:
        if self.train + self.val > 1.0:
            raise ValueError("train and val together exceed 1")
        return self


class Normalisation(Config):
    """Mean and standard deviation per channel of pixels scaled to [0, 1]."""

    mean: tuple[float, ...] = Field(min_length=1, max_length=4)
    std: tuple[float, ...] = Field(min_length=1, max_length=4)

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if len(self.mean) != len(self.std) or min(self.std) <= 0.0:
            raise ValueError("mean and std need one number each per channel, std above 0")
        return self


class Range(Config):
    """The values that are to be seen, in the unit of the file (CT: Hounsfield units): ``low`` black, ``high`` white."""

    low: float
    high: float

    @model_validator(mode="after")
    def _upwards(self) -> Self:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        return self


class Data(Config):
    """How a manifest and its images are read.

    ``image_size`` is the side in pixels of the square that the model sees; ``fit`` says how a picture becomes a
    square. Grey pictures are repeated over the backbone's channels; ``colour = "grey"`` turns colour into luma first.

    For DICOM, NIfTI and their kin, ``intensity`` says how values become 8 bits: by the file's own "window" (by
    percentiles where it has none), always by "percentiles" (the 0.5th to black, the 99.5th to white), or by a fixed
    range. ``volume`` says what becomes of several slices or frames: "refuse", take the "middle" one, or keep the
    "whole", brought to ``depth`` slices.

    ``boxes`` is the file, seen from the manifest's folder, that lists the boxes of a detection task.
    """

    columns: Columns = Columns()
    image_size: int = Field(default=128, ge=16, le=2048)
    fit: Literal["pad", "squash", "crop"] = "pad"
    colour: Literal["rgb", "grey"] = "rgb"
    intensity: Literal["window", "percentiles"] | Range = "window"
    volume: Literal["refuse", "middle", "whole"] = "refuse"
    depth: int | None = Field(default=None, ge=4, le=1024)
    boxes: str | None = None
    normalisation: Literal["backbone"] | Normalisation = "backbone"
    split: Split = Split()

    @model_validator(mode="after")
    def _deep(self) -> Self:
        if (self.depth is not None) != (self.volume == "whole"):
            raise ValueError('volume = "whole" needs a depth, and nothing else has one')
        return self


class Backbone(Config):
    """A frozen network: ``embedded:NAME``, ``hf:ID_OR_FOLDER``, ``file:PATH``, ``package:NAME`` or ``monai:…``.

    ``sha256`` pins the weights file (hex digest); what does not match is refused.
    """

    reference: str = Field(default="embedded:vit-tiny", pattern=r"^[a-z]+:.+$")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    pooling: Literal["cls", "mean", "cls+mean"] = "cls+mean"


NO_CLIPPING = "none"
Norm = Annotated[
    Annotated[float, Field(gt=0.0)] | None, BeforeValidator(lambda told: None if told == NO_CLIPPING else told)
]
"""Length to which a gradient is cut; ``"none"`` (TOML has no null) leaves it as it is."""


class Training(Config):
    """The local loop of one round. Give ``epochs`` or ``steps`` (batches), not both.

    The schedule runs over the whole federation; warm-up and decay are counted in rounds. ``threads`` is the number of
    CPU threads of one site's process: it changes the order of sums and so belongs to what makes a run reproducible.
    """

    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1e30)
    weight_decay: float = Field(default=0.01, ge=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    batch_size: int = Field(default=16, ge=1)
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_rounds: int = Field(default=0, ge=0)
    clip_norm: Norm = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int = Field(default=1, ge=1)

    @field_serializer("clip_norm")
    def _said(self, norm: float | None) -> float | str:
        return NO_CLIPPING if norm is None else norm

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self


class Rounds(Config):
    """How often, with whom, how long anybody is waited for, and how much each counts.

    ``quorum`` is the share of the chosen sites whose good replies make a round count; ``deadline`` ends the wait.
    A site's update counts by its training ``images`` or ``patients``, at most ``weight_cap`` of them, or ``equal``.
    """

    count: int = Field(default=10, ge=1)
    sites_per_round: int | None = Field(default=None, ge=1)
    quorum: float = Field(default=0.5, gt=0.0, le=1.0)
    deadline: Duration = 4 * 3600.0
    weight: Literal["images", "patients", "equal"] = "images"
    weight_cap: int = Field(default=100_000, ge=1, le=2**20)

    @field_serializer("deadline")
    def _with_unit(self, seconds: float) -> str:
        return f"{seconds:.12g} s"


class Monitoring(Config):
    """Resolution of the statistics that sites tell: see ``docs/run-folder.md``."""

    bins: int = Field(default=15, ge=2, le=100)
    score_bins: int = Field(default=256, ge=16, le=4096)
    feature_dims: int = Field(default=32, ge=2, le=256)
    kernel_features: int = Field(default=64, ge=8, le=1024, multiple_of=2)


class Study(Config):
    """Everything that a federation agrees on before it starts; ``digest`` names it."""

    study: About
    data: Data = Data()
    task: SerializeAsAny[Method]
    backbone: Backbone = Backbone()
    adaptation: tuple[SerializeAsAny[Method], ...] = Field(min_length=1)
    training: Training = Training()
    strategy: SerializeAsAny[Method]
    server_step: SerializeAsAny[Method]
    rounds: Rounds = Rounds()
    monitoring: Monitoring = Monitoring()
    privacy: Privacy | None = Field(default=None, exclude_if=lambda section: section is None)
    central: Central | None = Field(default=None, exclude_if=lambda section: section is None)
    """Both are absent from the canonical form where a study has none, so that their coming changed no digest."""

    @field_validator("task", "strategy", "server_step", mode="before")
    @classmethod
    def _plugin(cls, table: Any, info: Any) -> Method:
        group = {"task": "tasks", "strategy": "strategies", "server_step": "server_steps"}[info.field_name]
        return resolve(group, table, info.field_name)

    @field_validator("adaptation", mode="before")
    @classmethod
    def _chain(cls, tables: Any) -> tuple[Method, ...]:
        if not isinstance(tables, list | tuple):
            raise StudyError("needs a list of tables", where="adaptation", remedy="write [[adaptation]]")
        return tuple(resolve("adaptations", table, f"adaptation.{i}") for i, table in enumerate(tables))

    @model_validator(mode="after")
    def _possible(self) -> Self:
        demand_private(self)
        demand_central(self)
        for method in (self.task, *self.adaptation, self.strategy, self.server_step):
            if not method.fits(type(self.task)):
                raise StudyError(
                    f"'{method.method}' does not fit the task '{self.task.method}'",
                    where="adaptation",
                    remedy="polyclinic methods says which tasks it fits",
                )
            method.check(self)
        demand_chain(self.adaptation)
        return self

    @cached_property
    def canonical(self) -> bytes:
        """The canonical form (RFC 8785), every default written out."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical form, in hex: what a site approves and every message carries."""
        return hashlib.sha256(self.canonical).hexdigest()

    def toml(self) -> str:
        """The study as TOML, every default written out; ``loads`` gives the same digest."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))

    def with_seed(self, seed: int) -> Study:
        """The same study under another seed."""
        document = self.model_dump(mode="json")
        document["study"]["seed"] = seed
        return parse(Study, document, "--seed")


LONGEST, DOTS = 2**18, 2000
"""Characters of a study, and dots in one line of it: a key of thousands of parts takes TOML's reader many seconds."""
DEFAULTS: dict[str, Any] = {
    "task": {"method": "classification"},
    "strategy": {"method": "mean"},
    "server_step": {"method": "sgd"},
}


def _without_none(value: Any) -> Any:
    """TOML has no null: a key that is absent means the same."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list | tuple) else value


def loads(text: str, where: str = "study") -> Study:
    """A study from TOML text.

    Raises:
        StudyError: the text is no TOML, or asks for something unknown, malformed or impossible.
    """
    if len(text) > LONGEST or any(line.count(".") > DOTS for line in text.split("\n")):
        raise StudyError("is longer, or nested deeper, than any study", where=where)
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as failure:  # ValueError: no TOML, or a number of thousands of digits
        raise StudyError(f"this is not TOML: {failure}", where=where) from failure
    try:
        found = parse(Study, DEFAULTS | document, where)
        found.digest  # noqa: B018 -- numbers that have no canonical form are refused here, not when it is first asked
        return found
    except rfc8785.CanonicalizationError as failure:
        raise StudyError(f"a number is beyond bounds: {failure}", where=where) from failure
    except StudyError as failure:
        if failure.where.startswith(where):
            raise
        raise StudyError(failure.problem, where=f"{where}: {failure.where}", remedy=failure.remedy) from failure


def load(path: Path | str) -> Study:
    """A study from a TOML file; errors as for ``loads``, and for a file that cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as failure:
        remedy = "check the path, or write one: polyclinic study new"
        raise StudyError(f"cannot be read: {failure.strerror}", where=str(path), remedy=remedy) from failure
    except UnicodeDecodeError as failure:
        raise StudyError(f"is not UTF-8: {failure}", where=str(path), remedy="save it as UTF-8") from failure
    return loads(text, str(path))
