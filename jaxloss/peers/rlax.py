"""The losses of rlax: those that are not about reinforcement learning, and why the others are not here yet."""

from __future__ import annotations

from jaxloss.peers import Answer

__all__ = ["ANSWERS"]

UNREDUCED = "rlax reduces nothing; here the mean is the default."
ERROR = (
    "The reinforcement family is not built yet. rlax returns the temporal-difference error, target minus prediction, "
    "of one transition or trajectory (vmap) and not squared: until then give the prediction and "
    "jax.lax.stop_gradient(target) to jl.half_squared_error or jl.huber."
)
DISTRIBUTION = (
    "The reinforcement family is not built yet. The last step of a categorical critic is "
    "jl.softmax_cross_entropy_with_soft_labels(logits, projected target), of a quantile critic jl.quantile."
)
POLICY = (
    "The reinforcement family is not built yet. rlax averages over the steps of one trajectory, also under its weights "
    "`w_t`; jl.softmax_cross_entropy(logits_t, a_t) is -log of the policy."
)
PENALTY = (
    "The reinforcement family is not built yet; these return dual losses and statistics beside a loss of the policy."
)


def named(*names: str) -> tuple[str, ...]:
    """The full names."""
    return tuple(f"rlax.{name}" for name in names)


ANSWERS = (
    Answer(
        names=("rlax.l2_loss",),
        loss="half_squared_error",
        call='jl.half_squared_error(predictions, targets, reduction="none")',
        differs=f"Both have the factor 1/2. {UNREDUCED} Without `targets` rlax takes 0: write "
        "jnp.zeros_like(predictions).",
    ),
    Answer(
        names=("rlax.huber_loss",),
        loss="huber",
        call='jl.huber(x, jnp.zeros_like(x), delta=delta, reduction="none")',
        differs=f"rlax takes the error, here predictions and targets. {UNREDUCED}",
    ),
    Answer(
        names=("rlax.log_loss",),
        loss="binary_cross_entropy",
        call='jl.binary_cross_entropy(predictions, targets, reduction="none")',
        differs=f"{UNREDUCED} Both take probabilities; from logits, jl.sigmoid_cross_entropy keeps the digits.",
    ),
    Answer(
        names=("rlax.likelihood",),
        call='jnp.exp(-jl.binary_cross_entropy(predictions, targets, reduction="none"))',
        differs=f"No loss: it rises as predictions get better; its negative logarithm is one. {UNREDUCED}",
    ),
    Answer(
        names=("rlax.expectile_loss",),
        loss="expectile",
        call='jl.expectile(predictions, targets, level=expectile, reduction="none")',
        differs=f"{UNREDUCED} In both the level weighs targets above the prediction, 1 - level those below.",
    ),
    Answer(
        names=("rlax.quantile_regression_loss",),
        when="huber_param=0, its default",
        loss="quantile",
        call="dist_src.size * jl.quantile(jnp.tile(dist_src, (dist_target.size, 1)), dist_target, level=tau_src)",
        differs="rlax sums over the levels and averages over the targets, here both are averaged; it takes one "
        "example a call (vmap), and stops the gradient of nothing but a sign (`stop_target_gradients`). With "
        "`huber_param` it needs quantile_huber, which is not built yet.",
    ),
    Answer(
        names=("rlax.categorical_cross_entropy",),
        loss="softmax_cross_entropy_with_soft_labels",
        call='jl.softmax_cross_entropy_with_soft_labels(logits, labels, reduction="none")',
        differs=f"rlax takes the labels first, which are probabilities, and divides them by their sum. {UNREDUCED}",
    ),
    Answer(
        names=("rlax.categorical_kl_divergence",),
        loss="kl_divergence_with_log_targets",
        call="jl.kl_divergence_with_log_targets(jax.nn.log_softmax(q_logits / temperature), "
        'jax.nn.log_softmax(p_logits / temperature), reduction="none")',
        differs="rlax takes two arrays of logits, of p first; here come log-probabilities, q's, the prediction's, "
        f"first. {UNREDUCED}",
    ),
    Answer(
        names=("rlax.multivariate_normal_kl_divergence",),
        loss="gaussian_kl",
        call='jl.gaussian_kl(mu_0, 2 * jnp.log(sigma_0), mu_1, 2 * jnp.log(sigma_1), reduction="none")',
        differs=f"rlax takes standard deviations, here logarithms of variances. {UNREDUCED}",
    ),
    Answer(
        names=named(
            "td_learning",
            "td_lambda",
            "sarsa",
            "expected_sarsa",
            "sarsa_lambda",
            "q_learning",
            "double_q_learning",
            "persistent_q_learning",
            "qv_learning",
            "qv_max",
            "q_lambda",
            "retrace",
            "retrace_continuous",
            "transformed_n_step_q_learning",
            "transformed_q_lambda",
            "transformed_retrace",
        ),
        not_yet=ERROR,
    ),
    Answer(
        names=named(
            "transformed_general_off_policy_returns_from_action_values",
            "transformed_lambda_returns",
            "transformed_n_step_returns",
        ),
        not_yet="No loss, but the targets of one; the reinforcement family, which would compute them, is not built "
        "yet.",
    ),
    Answer(
        names=named(
            "categorical_td_learning",
            "categorical_q_learning",
            "categorical_double_q_learning",
            "categorical_l2_project",
            "quantile_q_learning",
            "quantile_expected_sarsa",
        ),
        not_yet=DISTRIBUTION,
    ),
    Answer(
        names=named("vtrace", "leaky_vtrace", "vtrace_td_error_and_advantage", "leaky_vtrace_td_error_and_advantage"),
        not_yet="The reinforcement family is not built yet. These return corrected errors and advantages, not a loss.",
    ),
    Answer(
        names=named(
            "policy_gradient_loss",
            "dpg_loss",
            "qpg_loss",
            "rm_loss",
            "rpg_loss",
            "entropy_loss",
            "clipped_surrogate_pg_loss",
            "sampled_policy_distillation_loss",
        ),
        not_yet=POLICY,
    ),
    Answer(
        names=named(
            "mpo_loss",
            "vmpo_loss",
            "mpo_compute_weights_and_temperature_loss",
            "vmpo_compute_weights_and_temperature_loss",
            "compute_parametric_kl_penalty_and_dual_loss",
        ),
        not_yet=PENALTY,
    ),
    Answer(
        names=("rlax.pixel_control_loss",),
        not_yet="The reinforcement family is not built yet; this is an auxiliary task of images, with Q(lambda) "
        "errors of its own pseudo-rewards, half-squared.",
    ),
)
