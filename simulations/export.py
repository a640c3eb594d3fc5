"""Taking a finished adapter, or the merged model, out of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from polyclinic.core import files
from polyclinic.core.errors import RunError
from polyclinic.core.runs import Run
from polyclinic.models.export import form, write_merged
from polyclinic.simulations.evaluate import adapted

_ADAPTER = """# Adapter of study "{name}"

Study digest: `{digest}`. Backbone: `{backbone}`. The adapter is in peft's own format.

```python
import polyclinic, peft
network = polyclinic.network(polyclinic.load_study("study.toml"))   # backbone and head, before adaptation
model = peft.PeftModel.from_pretrained(network, ".").eval()
logits = model(pixels)                                              # float32 [N, C, {size}, {size}] in [0, 1]
```
"""
_OWN = """# Adapter of study "{name}"

Study digest: `{digest}`. Backbone: `{backbone}`. peft has no form for all that this study trains, so the adapter
is in Polyclinic's own: `adapter_model.safetensors` holds what travelled, by the names of the adapted network.

```python
import polyclinic
model = polyclinic.adapted(polyclinic.load_study("study.toml"), ".")
logits = model(pixels)                                              # float32 [N, C, {size}, {size}] in [0, 1]
```
"""
_MERGED = """# Merged model of study "{name}"

Study digest: `{digest}`. Backbone: `{backbone}`, with the adapter merged in, in transformers' own format; the linear
head is in `head.safetensors`; `polyclinic.json` says how pixels are normalised and tokens pooled.

```python
import json, pathlib, torch
from safetensors.torch import load_file
from transformers import AutoModel
card, head = json.loads(pathlib.Path("polyclinic.json").read_text()), load_file("head.safetensors")
encoder = AutoModel.from_pretrained("."{options}).eval()
mean, std = (torch.tensor(card[k]).view(1, -1, 1, 1) for k in ("mean", "std"))
tokens = encoder(pixel_values=(pixels - mean) / std).last_hidden_state   # pixels in [0, 1], {size} × {size}
cls, patches = tokens[:, 0], tokens[:, card["leading_tokens"]:].mean(1)
features = {{"cls": cls, "mean": patches, "cls+mean": torch.cat([cls, patches], 1)}}[card["pooling"]]
logits = features @ head["weight"].T + head["bias"]
```
"""


def export(run: Run, folder: Path, *, merged: bool) -> None:
    """Writes the adapter or the merged model, the study and a README into ``folder``: all of it or nothing.

    Raises:
        RunError: the folder exists, cannot be written, or the run's adapter is damaged.
    """
    if folder.exists():
        raise RunError("exists already", where=str(folder), remedy="choose another name")
    study, beside = run.study, folder.with_name(f".{folder.name}.part")
    with files.explained(folder):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            adapted(run)  # refuses one that is damaged or another run's
            if merged:
                write_merged(study, run.adapter, beside)
            else:
                shutil.copytree(run.adapter, beside, dirs_exist_ok=True)
            shutil.copy(run.folder / "study.toml", beside)
            text = (_MERGED if merged else {"peft": _ADAPTER}.get(form(run.adapter), _OWN)).format(
                name=study.study.name,
                digest=study.digest,
                backbone=study.backbone.reference,
                size=study.data.image_size,
                options=_options(beside),
            )
            files.write(beside / "README.md", text)
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _options(folder: Path) -> str:
    """What transformers must be told so that it does not make up a pooler that the model never had."""
    config = folder / "config.json"
    vit = config.is_file() and json.loads(config.read_text(encoding="utf-8"))["model_type"] == "vit"
    return ", add_pooling_layer=False" if vit else ""
