"""Exchange of style in the frequency domain: what makes a scanner's pictures look alike is in low amplitudes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, Memory, Start, Trained
from polyclinic.models.adaptations.looking import looked
from polyclinic.models.adaptations.places import demand_plain_average, within
from polyclinic.models.contracts import Task, Views

if TYPE_CHECKING:
    from polyclinic.core.study import Study

CHANNELS = 3


class ExchangeAmplitude(Method):
    """``method = "exchange_amplitude"``: after FedDG (Liu et al. 2021, arXiv 2103.06030, equation 2), for training.

    Of a training picture's spectrum the amplitudes up to ``frequencies`` cycles a picture become (1 − λ)·own +
    λ·federation's, λ uniform in [0, 1] for each picture; the phase, which holds the shapes, stays. ``share`` of the
    pictures are changed. Unlike the paper, no picture's amplitudes travel and there is no bank of them: a site tells
    the mean over all its training pictures, and gets the mean over the federation's, so that styles are drawn towards
    a common one and not exchanged in pairs. Nothing changes in round 1, when there is no mean yet; nor in use.
    """

    facts: ClassVar[Facts] = Facts(
        families=("data",),
        paper="Liu et al. 2021 (FedDG), arXiv 2103.06030; means in place of single pictures' spectra",
        exact_private=False,
        because="a site's mean amplitudes leave beside the gradients, and no clipping bounds them",
        travels="the mean low-frequency amplitudes of each channel over the site's training pictures, without phase",
    )

    method: Literal["exchange_amplitude"] = "exchange_amplitude"
    frequencies: int = Field(default=3, ge=0, le=64)
    share: float = Field(default=0.5, gt=0.0, le=1.0)

    def check(self, study: Study) -> None:
        """Refuses volumes, pictures too small, and server steps after which what travels would be no mean."""
        demand_plain_average(study, self.method)
        if study.data.depth is not None:
            raise StudyError(
                "'exchange_amplitude' is for pictures, and these are volumes",
                where="adaptation",
                remedy='leave it out, or write volume = "middle"',
            )
        if study.data.image_size <= 2 * self.frequencies:
            raise StudyError(
                f"a picture of {study.data.image_size} pixels has no {self.frequencies} cycles to tell apart",
                where="adaptation.frequencies",
                remedy="choose fewer",
            )

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(
            families=frozenset({"data"}),
            fit_in=self._fit_in,
            travels=lambda name: within("amplitude", name),
            still=lambda name: within("amplitude", name),
            batch=self._batch,
            settle=self._settle,
        )

    def explain(self) -> str:
        """What it does."""
        return (
            f"The low frequencies' amplitudes (up to {self.frequencies} cycles) of {self.share:.0%} of the training "
            "pictures are mixed with the federation's mean ones (after FedDG); each site sends the mean of its own "
            "pictures after every round."
        )

    def _fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        edge = 2 * self.frequencies + 1
        model.amplitude = nn.ParameterDict({"told": torch.zeros(CHANNELS, edge, edge)})

    def _batch(self, model: nn.Module, task: Task, views: Views, generator: torch.Generator) -> Views:
        mix = torch.rand(len(views.pixels), generator=generator)
        mix = mix * (torch.rand(len(mix), generator=generator) < self.share)
        told = _told(model).detach()
        if not told.any():
            return views
        each = told if views.pixels.shape[1] == CHANNELS else told.mean(dim=0, keepdim=True)
        return Views(mixed(views.pixels, each, mix.to(views.pixels.device)), views.target)

    def _settle(self, model: nn.Module, start: Start, trained: Trained) -> Memory:
        told = _told(model)
        everything = torch.arange(len(start.pool.pixels))
        found = looked(start, everything, lambda pixels: amplitudes(pixels, self.frequencies).double())
        with torch.no_grad():
            told.copy_(found.mean(dim=0).expand_as(told))
        return {}


def amplitudes(pixels: Tensor, frequencies: int) -> Tensor:
    """[N, C, 2f + 1, 2f + 1] of pictures [N, C, S, S]: |spectrum| / pixels at -f … f cycles down and across."""
    low = _low(frequencies, pixels.device)
    spectrum = torch.fft.fft2(pixels, norm="forward")
    own: Tensor = spectrum[..., low[:, None], low].abs()
    return own


def mixed(pixels: Tensor, others: Tensor, mix: Tensor) -> Tensor:
    """Pictures [N, C, S, S] whose low amplitudes are (1 − mix)·own + mix·others, cut off to [0, 1]; mix [N].

    ``others`` [C, 2f + 1, 2f + 1] in the form of ``amplitudes``. Where ``mix`` is 0 the picture is as it was.
    """
    low = _low(others.shape[-1] // 2, pixels.device)
    spectrum = torch.fft.fft2(pixels, norm="forward")
    own = spectrum[..., low[:, None], low]
    share = mix.view(-1, 1, 1, 1)
    spectrum[..., low[:, None], low] = torch.polar((1 - share) * own.abs() + share * others, own.angle())
    seen = torch.fft.ifft2(spectrum, norm="forward").real.clamp(0.0, 1.0)
    return torch.where(share > 0, seen, pixels)


def _low(frequencies: int, device: torch.device) -> Tensor:
    """Where the spectrum holds -f … f cycles: negative ones are counted from its end."""
    return torch.arange(-frequencies, frequencies + 1, device=device)


def _told(model: nn.Module) -> nn.Parameter:
    return model.get_parameter("amplitude.told")
