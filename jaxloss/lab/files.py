"""What `--out DIR` keeps: the table as CSV and JSON, the curves as PNG, and one page with all of it."""

from __future__ import annotations

import base64
import csv
import importlib.metadata
import json
import math
import platform
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np

from jaxloss._version import __version__
from jaxloss.lab.compare import Comparison, Standing
from jaxloss.lab.data import SPLIT_SEED
from jaxloss.lab.leaderboard import columns, rows
from jaxloss.lab.plots import draw_curves
from jaxloss.lab.program import winner_program
from jaxloss.lab.wording import findings, reading, timing

__all__ = ["write_files"]

_PACKAGES = ("jax", "jaxlib", "optax", "flax", "scikit-learn", "numpy")


def write_files(comparison: Comparison, directory: Path) -> list[Path]:
    """Write the four files (what has their names is replaced) and return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    table, record = directory / "leaderboard.csv", directory / "leaderboard.json"
    curves, page = directory / "curves.png", directory / "index.html"
    _write_csv(comparison, table)
    record.write_text(json.dumps(as_record(comparison), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draw_curves(comparison, curves)
    page.write_text(_page(comparison, curves.read_bytes()), encoding="utf-8")
    return [table, record, curves, page]


def _write_csv(comparison: Comparison, path: Path) -> None:
    """One row a pair; numbers in full, shares as shares (0.974, not 97.4)."""
    measured = [f"test_{metric.name}{part}" for metric in comparison.metrics for part in ("", "_sd")]
    ranking = f"validation_{comparison.metrics[0].name}"
    head = ["rank", "loss", "optimizer", "learning_rate", ranking, *measured, "diverged", "runs", "seconds"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, head)
        writer.writeheader()
        for i, standing in enumerate(comparison.standings):
            row: dict[str, Any] = {
                "rank": i + 1,
                "loss": standing.contender.name,
                "optimizer": standing.optimizer.name,
                "learning_rate": standing.learning_rate,
                "diverged": standing.diverged,
                "runs": standing.runs.failed.size,
                "seconds": round(standing.runs.seconds, 3),
            }
            if standing.best is not None:
                row[ranking] = float(standing.validation[comparison.metrics[0].name][:, standing.best].mean())
            for name, of_seeds in standing.test.items():
                row[f"test_{name}"] = float(of_seeds.mean())
                row[f"test_{name}_sd"] = float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else None
            writer.writerow(row)


def as_record(comparison: Comparison) -> dict[str, Any]:
    """Everything that the numbers depend on, and every number seed by seed."""
    data = comparison.data
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    return {
        "data": {
            "name": data.name,
            "task": data.task,
            "rows": {name: len(part) for name, part in parts.items()},
            "split_seed": SPLIT_SEED,
        },
        "settings": {
            "seeds": list(range(comparison.seeds)),
            "epochs": comparison.epochs,
            "batch_size": comparison.batch_size,
        },
        "versions": {
            "jaxloss": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "device": jax.devices()[0].device_kind,
        "seconds": round(comparison.seconds, 3),
        "compile_seconds": round(comparison.compile_seconds, 3),
        "standings": [_standing_record(standing) for standing in comparison.standings],
        "findings": findings(comparison),
        "program": winner_program(comparison),
    }


def _standing_record(standing: Standing) -> dict[str, Any]:
    runs = standing.runs
    return {
        "loss": standing.contender.name,
        "options": dict(standing.contender.options),
        "predictions": standing.contender.recipe.in_words,
        "optimizer": standing.optimizer.name,
        "learning_rate": standing.learning_rate,
        "test": {name: _plain(of_seeds) for name, of_seeds in standing.test.items()},
        # From here on [learning rates][seeds].
        "learning_rates": list(runs.learning_rates),
        "validation": {name: _plain(of.T) for name, of in standing.validation.items()},
        "diverged": runs.failed.T.tolist(),
        "validation_score_by_epoch": _plain(runs.validation_score.swapaxes(0, 1)),
        "training_loss_by_epoch": _plain(runs.training_loss.swapaxes(0, 1)),
        "compile_seconds": round(runs.compile_seconds, 3),
        "training_seconds": round(runs.training_seconds, 3),
    }


def _plain(values: Any) -> Any:
    """An array as nested lists, with None for what JSON has no number for, and 6 digits for the rest."""
    if isinstance(values, np.ndarray):
        return [_plain(value) for value in values]
    return float(f"{values:.6g}") if math.isfinite(values) else None


def _page(comparison: Comparison, image: bytes) -> str:
    template = resources.files("jaxloss.lab").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(
        data=comparison.data,
        comparison=comparison,
        columns=columns(comparison),
        rows=rows(comparison),
        reading=reading(comparison),
        findings=findings(comparison),
        timing=timing(comparison),
        program=winner_program(comparison),
        predictions={each.contender.name: each.contender.recipe.in_words for each in comparison.standings},
        image=base64.b64encode(image).decode("ascii"),
        version=__version__,
    )
