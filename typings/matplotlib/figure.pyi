from pathlib import Path
from typing import Literal

from matplotlib.axes import Axes

class Figure:
    def __init__(self, *, figsize: tuple[float, float], layout: Literal["constrained"]) -> None: ...
    def subplots(self, nrows: Literal[1], ncols: Literal[2]) -> tuple[Axes, Axes]: ...
    def suptitle(self, t: str) -> object: ...
    def savefig(self, fname: Path, *, format: Literal["png"], dpi: float) -> None: ...  # noqa: A002  its own name
