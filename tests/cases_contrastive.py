"""The textbook formulas of the contrastive losses in NumPy float64: one row, one exponential, one pair at a time."""

import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def picked(scores, own):
    e = np.exp(np.array(scores))
    return -np.log(e[own] / e.sum())


def info_nce(queries, keys, negatives=None, temperature=0.1, similarity="cosine"):
    like = cosine if similarity == "cosine" else np.dot
    values = []
    for i, q in enumerate(queries):
        extra = [] if negatives is None else negatives if negatives.ndim == 2 else negatives[i]
        values.append(picked([like(q, k) / temperature for k in [*keys, *extra]], i))
    return np.array(values)


def in_batch_softmax(queries, documents, hard_negatives=None, temperature=0.05, similarity="cosine"):
    mined = None if hard_negatives is None else hard_negatives.reshape(-1, queries.shape[1])
    return info_nce(queries, documents, mined, temperature, similarity)


def clip_contrastive(image, text, temperature=0.07):
    return (info_nce(image, text, None, temperature) + info_nce(text, image, None, temperature)) / 2


def siglip(image, text, scale=10.0, bias=-10.0):
    def pair(i, j):
        z = scale * cosine(image[i], text[j]) + bias
        return np.log(1 + np.exp(-z if i == j else z))

    return np.array([sum(pair(i, j) for j in range(len(text))) for i in range(len(image))])


def over_positives(embeddings, labels, temperature, others_count):
    """Each row's mean of -log softmax over its positives, and whether it has one."""
    values, rows = [], range(len(labels))
    for i in rows:
        s = {j: np.exp(cosine(embeddings[i], embeddings[j]) / temperature) for j in rows if j != i}
        near = [j for j in s if labels[j] == labels[i]]
        terms = [-np.log(s[p] / sum(s[j] for j in s if j == p or others_count or j not in near)) for p in near]
        values.append(np.mean(terms) if terms else 0.0)
    share = np.array([float(sum(labels == labels[i]) > 1) for i in rows])
    return np.array(values, float), share


def nt_xent(embeddings, labels, temperature=0.1):
    return over_positives(embeddings, labels, temperature, others_count=False)


def supervised_contrastive(embeddings, labels, temperature=0.1):
    return over_positives(embeddings, labels, temperature, others_count=True)


def grouped(rng, arrays):
    """Three rows of one label, two of another, and one alone: in this order, so that two masked rows leave pairs."""
    return {**arrays, "labels": np.resize([0, 0, 1, 0, 2, 1], arrays["labels"].shape)}


PAIRED = {"queries": "ND", "keys": "ND"}

CASES = (
    Case(
        jl.info_nce,
        info_nce,
        shapes=PAIRED,
        options=({}, {"temperature": 2.0, "similarity": "dot"}),
        kind="coupled",
    ),
    Case(jl.info_nce, info_nce, shapes={**PAIRED, "negatives": "MD"}, kind="coupled"),
    Case(jl.info_nce, info_nce, shapes={**PAIRED, "negatives": "NMD"}, kind="coupled"),
    Case(
        jl.in_batch_softmax,
        in_batch_softmax,
        shapes={"queries": "ND", "documents": "ND", "hard_negatives": "NMD"},
        options=({"temperature": 0.5},),
        kind="coupled",
    ),
    Case(
        jl.clip_contrastive,
        clip_contrastive,
        shapes={"image": "ND", "text": "ND"},
        options=({"temperature": 0.2},),
        kind="coupled",
    ),
    Case(
        jl.siglip,
        siglip,
        shapes={"image": "ND", "text": "ND"},
        options=({"scale": 3.0, "bias": -2.0},),
        kind="coupled",
    ),
    Case(
        jl.nt_xent,
        nt_xent,
        shapes={"embeddings": "ND", "labels": "N"},
        options=({"temperature": 0.3},),
        kind="coupled",
        draw=grouped,
        classes="C",
    ),
    Case(
        jl.supervised_contrastive,
        supervised_contrastive,
        shapes={"embeddings": "ND", "labels": "N"},
        options=({"temperature": 0.3},),
        kind="coupled",
        draw=grouped,
        classes="C",
    ),
)
