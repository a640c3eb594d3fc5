"""Help texts of arguments: typer 0.20 loses them to click 8.5, and here they are given back."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument, TyperCommand
from typer.utils import get_params_from_function


class Command(TyperCommand):
    """A command whose help explains its arguments."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        declared = get_params_from_function(self.callback) if self.callback else {}
        for param in self.params:
            if isinstance(param, TyperArgument) and param.name in declared:
                param.help = param.help or declared[param.name].default.help
