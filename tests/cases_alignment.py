"""The textbook formula of ctc in NumPy float64: every one of the V^T ways to give each frame a class."""

import functools
import itertools

import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def merged(path, blank):
    """A class a frame to labels: equal neighbours merge, then blanks go."""
    return tuple(c for c, _ in itertools.groupby(path) if c != blank)


@functools.cache
def alignments(frames, classes, labels, blank):
    """Every path of so many frames that becomes `labels`, [paths, frames]."""
    found = [p for p in itertools.product(range(classes), repeat=frames) if merged(p, blank) == labels]
    return np.array(found, int).reshape(len(found), frames)


def weights_of_paths(logits, labels, blank):
    """The probability of each alignment of one sequence, and the alignments."""
    p = np.exp(logits - logits.max(-1, keepdims=True, initial=-1e300))
    p /= p.sum(-1, keepdims=True)
    paths = alignments(len(logits), logits.shape[-1], tuple(int(c) for c in labels), blank)
    return np.prod(p[np.arange(len(logits)), paths], axis=-1), paths


def ctc(logits, labels, logit_lengths=None, label_lengths=None, blank=0, infeasible="inf"):
    values = []
    for i, z in enumerate(logits):
        z = z if logit_lengths is None else z[: int(logit_lengths[i])]
        row = labels[i] if label_lengths is None else labels[i, : int(label_lengths[i])]
        total = weights_of_paths(z, row, blank)[0].sum()
        value = -np.log(total) if total > 0 else {"inf": np.inf, "zero": 0.0}[infeasible]
        values.append(np.nan if blank in row else value)
    return np.array(values)


def legal(rng, arrays):
    """Labels that are not the blank (no label at all where there is one class), perhaps too many for their frames."""
    if arrays["logits"].shape[-1] > 1:
        return {**arrays, "labels": np.maximum(arrays["labels"], 1)}
    none = {"label_lengths": 0 * arrays["label_lengths"]} if "label_lengths" in arrays else {}
    return {**arrays, "labels": arrays["labels"][:, :0], **none}


# T = 3 frames, S = 2 labels, V = 5 classes.
CASES = (
    Case(
        jl.ctc,
        ctc,
        shapes={"logits": "NTV", "labels": "NS", "logit_lengths": "N", "label_lengths": "N"},
        options=({"infeasible": "zero"},),
        draw=legal,
    ),
)
