"""The losses of rax, its transformations of metrics and its weights of pairs."""

from __future__ import annotations

from jaxloss.peers import Answer

__all__ = ["ANSWERS"]

ITEMS = (
    "rax's `where` says which items exist, and is `valid` here; its default `reduce_fn` averages over lists, as ours. "
    "Of `segments` in a list make lists."
)
ENTRIES = (
    "rax's default `reduce_fn` averages over all items of all lists, as ours. Its `weights` multiply while the mean "
    "divides by the number of items, ours by their sum; `segments` mean nothing in it."
)
PAIRS = (
    "rax's `where` says which items exist, and is `valid` here (then count the pairs of those alone). Its default "
    "`reduce_fn` averages over all pairs of all lists, here over the pairs of each list and then over lists: the "
    "weights are the numbers of pairs. An item's `weights` multiply all pairs that it leads; for `lambdaweight_fn` "
    "there is jl.lambda_rank; of `segments` in a list make lists."
)
COUNTED = "valid=where, weights=(labels[..., :, None] > labels[..., None, :]).sum((-2, -1))"
BOUNDS = (
    "The bounds of metrics are not built yet; jl.approx_ndcg and jl.lambda_rank are what is trained in their place."
)

ANSWERS = (
    Answer(
        names=("rax.softmax_loss",),
        loss="list_softmax",
        call="jl.list_softmax(scores, labels, valid=where)",
        differs=f"{ITEMS} An item's `weights` multiply its label, as `label_fn` may change it: give them as labels.",
    ),
    Answer(
        names=("rax.poly1_softmax_loss",),
        when="one relevant item a list, of label 1",
        loss="poly_cross_entropy",
        call="jl.poly_cross_entropy(scores, labels.argmax(-1), epsilon=epsilon)",
        differs="The default epsilon is 1 in rax, 2 here. Of items that do not exist (`where`) the scores are -inf: "
        "jnp.where(where, scores, -jnp.inf). Lists of several relevant items, `weights` and `segments` have no equal "
        "yet; `reduce_fn` is reduction here.",
    ),
    Answer(
        names=("rax.listmle_loss",),
        loss="list_mle",
        call="jl.list_mle(scores, labels, valid=where)",
        differs=f"{ITEMS} Items of equal label keep their order here; rax shuffles them by a `key`.",
    ),
    Answer(
        names=("rax.pairwise_hinge_loss",),
        loss="pairwise_hinge",
        call=f"jl.pairwise_hinge(scores, labels, {COUNTED})",
        differs=PAIRS,
    ),
    Answer(
        names=("rax.pairwise_logistic_loss",),
        loss="pairwise_logistic",
        call=f"jl.pairwise_logistic(scores, labels, {COUNTED})",
        differs=PAIRS,
    ),
    Answer(
        names=("rax.pointwise_mse_loss",),
        loss="squared_error",
        call="jl.squared_error(scores, labels, where=where)",
        differs=ENTRIES,
    ),
    Answer(
        names=("rax.pointwise_sigmoid_loss",),
        loss="sigmoid_cross_entropy",
        call="jl.sigmoid_cross_entropy(scores, labels.clip(0, 1), where=where)",
        differs=f"rax cuts labels off at 0 and 1. {ENTRIES}",
    ),
    Answer(
        names=("rax.pairwise_mse_loss",),
        not_yet="No loss of all pairs' squared differences is built yet; without a mask it is "
        "2 * jnp.var(scores - labels, axis=-1).mean(), no pairs needed.",
    ),
    Answer(
        names=("rax.pairwise_qr_loss",),
        not_yet="No quantile loss of pairs is built yet; of given pairs, jl.quantile takes the differences of their "
        "scores and of their labels.",
    ),
    Answer(
        names=("rax.pairwise_soft_zero_one_loss",),
        not_yet="The pairwise sigmoid is not built yet; jl.pairwise_logistic bounds it, jl.auc_margin also aims at "
        "AUC.",
    ),
    Answer(
        names=("rax.unique_softmax_loss",),
        not_yet="The softmax of each item against the less relevant ones alone is not built yet; jl.list_softmax and "
        "jl.list_mle are its neighbours.",
    ),
    # A metric made a loss
    Answer(
        names=("rax.approx_t12n",),
        when="of rax.ndcg_metric",
        loss="approx_ndcg",
        call="jl.approx_ndcg(scores, labels, temperature=temperature, valid=where) - 1",
        differs="rax's transformation of its `metric_fn` is minus the metric, in [-1, 0]; here it is 1 minus it, in "
        "[0, 1].",
    ),
    Answer(
        names=("rax.approx_t12n",),
        when="of rax.mrr_metric",
        loss="approx_mrr",
        call="jl.approx_mrr(scores, labels, temperature=temperature, valid=where) - 1",
        differs="rax's transformation of its `metric_fn` is minus the metric, in [-1, 0]; here it is 1 minus it, in "
        "[0, 1].",
    ),
    Answer(names=("rax.bound_t12n",), not_yet=BOUNDS),
    Answer(
        names=("rax.gumbel_t12n",),
        not_yet="Noise on scores is not built as a wrapper yet: give any loss here scores + jax.random.gumbel(key, "
        "shape) of several draws, and average.",
    ),
    Answer(
        names=("rax.segment_t12n",),
        differs="No loss: it lets a `loss_or_metric_fn` take several lists in one row. Here each list is a row: pad "
        "them, and say with `valid` which items exist.",
    ),
    Answer(
        names=("rax.dcg_lambdaweight",),
        when="in rax.pairwise_logistic_loss, with normalize=True and reduce_fn=jnp.sum",
        loss="lambda_rank",
        call='jl.lambda_rank(scores, labels, valid=where, reduction="sum") * scores.shape[-1]',
        differs="rax multiplies by the length of the list, and its mean is over pairs; here a list's value is the sum "
        "over its pairs, in units of NDCG (`normalize`). `gain_fn` is 2^label - 1 and `discount_fn` 1 / log2(1 + "
        "rank) in both; `topn`, `weights` and `segments` have no equal.",
    ),
    Answer(
        names=("rax.dcg2_lambdaweight", "rax.labeldiff_lambdaweight"),
        not_yet="Of the weights of pairs only those of LambdaRank are built, as jl.lambda_rank.",
    ),
    # Metrics that losses name
    Answer(
        names=("rax.ndcg_metric",),
        call="jl.metrics.ndcg(scores, labels, k=topn, valid=where).value",
        differs="A metric, not a loss. Equal scores count as all their orders do on average, where rax takes the "
        "first or one by `key`; lists without a relevant item are absent, in rax 0. The rest of its options "
        "(`gain_fn`, `discount_fn`, `rank_fn`, `cutoff_fn`, `reduce_fn`, `weights`, `segments`) are the textbook's "
        "here.",
    ),
    Answer(
        names=("rax.mrr_metric",),
        call="jl.metrics.mean_reciprocal_rank(scores, labels, k=topn, valid=where).value",
        differs="A metric, not a loss. Relevant is a label above 0 here, from 1 on in rax; equal scores are retrieved "
        "together here, in rax by `key`; lists without a relevant item are absent, in rax 0. Of `rank_fn`, "
        "`cutoff_fn`, `reduce_fn` and `segments` only the defaults exist.",
    ),
)
