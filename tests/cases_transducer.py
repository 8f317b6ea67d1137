"""The textbook formulas of the transducer losses in NumPy float64: plain probabilities, summed node by node."""

import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def transducer(logits, labels, logit_lengths=None, label_lengths=None, blank=0, infeasible="inf"):
    values = []
    for i, z in enumerate(logits):
        frames = len(z) if logit_lengths is None else int(logit_lengths[i])
        symbols = labels.shape[1] if label_lengths is None else int(label_lengths[i])
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        reached = np.zeros((frames + 1, symbols + 1))
        reached[0, 0] = 1
        for t in range(frames):
            for u in range(symbols + 1):
                reached[t + 1, u] += reached[t, u] * p[t, u, blank]
                if u < symbols:
                    reached[t, u + 1] += reached[t, u] * p[t, u, labels[i, u]]
        values.append(-np.log(reached[frames, symbols]) if frames else np.inf)
    return np.array(values, float)


def transducer_with_joiner(encoder, predictor, labels, joiner=None, encoder_lengths=None, **options):
    options.pop("tile", None)
    logits = (joiner or np.add)(encoder[:, :, None], predictor[:, None])
    return transducer(logits, labels, logit_lengths=encoder_lengths, **options)


def legal(rng, arrays):
    """Labels that are no blank (no label at all where there is one class), and at least one frame."""
    single = next(iter(arrays.values())).shape[-1] == 1
    frames = {name: np.maximum(arrays[name], 1) for name in ("logit_lengths", "encoder_lengths") if name in arrays}
    none = {"label_lengths": 0 * arrays["label_lengths"]} if single and "label_lengths" in arrays else {}
    labels = arrays["labels"][:, :0] if single else np.maximum(arrays["labels"], 1)
    return {**arrays, "labels": labels, **frames, **none}


# T = 3 frames, S = 2 labels, D = 3 = S + 1 nodes beside each frame, V = 5 classes.
CASES = (
    Case(
        jl.transducer,
        transducer,
        shapes={"logits": "NTDV", "labels": "NS", "logit_lengths": "N", "label_lengths": "N"},
        options=({"infeasible": "zero"},),
        draw=legal,
    ),
    Case(
        jl.transducer_with_joiner,
        transducer_with_joiner,
        shapes={"encoder": "NTV", "predictor": "NDV", "labels": "NS", "encoder_lengths": "N"},
        draw=legal,
    ),
)
