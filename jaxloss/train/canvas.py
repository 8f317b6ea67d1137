"""Where a picture is drawn: a figure of its own, or axes that the caller has."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["COLOURS", "axes", "save"]

# Okabe and Ito's colours, told apart by everybody.
COLOURS = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "grey": "#7F7F7F",
}


def axes(ax: Any, *, width: float, height: float) -> Any:
    """`ax`, or the axes of a new figure of `width` by `height` inches; the figure is in no list of pyplot's.

    Raises: ImportError where matplotlib is missing.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures are drawn by matplotlib: pip install 'jaxloss[train]'") from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    # A canvas of its own: no backend is chosen for the caller, and none needs a screen.
    FigureCanvasAgg(figure)
    return figure.subplots()


def save(ax: Any, path: str | os.PathLike[str] | None) -> Any:
    """The figure that `ax` belongs to, written to `path` if there is one."""
    if path is not None:
        ax.figure.savefig(path)
    return ax.figure
