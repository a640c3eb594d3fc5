"""Maps the folders at the root into one package, polyclinic; an editable install gets links under .dev instead."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("core", "models", "client", "strategies", "server", "simulations", "cli")
PLACES = {"cli/facade.py": "__init__.py", "py.typed": "py.typed"} | {folder: folder for folder in FOLDERS}


class Hook(BuildHookInterface):  # type: ignore[type-arg]
    """Wheel: force-include every folder under polyclinic/. Editable: generate the links that .dev holds."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"] |= {f"{self.root}/{a}": f"polyclinic/{b}" for a, b in PLACES.items()}
            return
        home = Path(self.root, ".dev", "polyclinic")
        home.mkdir(parents=True, exist_ok=True)
        for source, place in PLACES.items():
            if not (home / place).is_symlink():
                (home / place).symlink_to(Path("..", "..", source))
