"""Single defects in what the catalogue says about other libraries' names."""

_CATALOGUE, _APP = "jaxloss/catalogue.py", "jaxloss/lab/app.py"
_KERAS, _OPTAX, _RAX, _RLAX, _TORCH, _JAXOPT = (
    f"jaxloss/peers/{library}.py" for library in ("keras", "optax", "rax", "rlax", "torch", "jaxopt")
)

MUTANTS = [
    (
        _OPTAX,
        "peers: l2_loss without its factor 1/2",
        'loss="half_squared_error",\n        call=\'jl.half_squared_error(',
        'loss="squared_error",\n        call=\'jl.squared_error(',
        "tests/test_peers.py -k 'gives and l2_loss and optax'",
    ),
    (
        _OPTAX,
        "peers: labels 0 and 1 given as signs",
        "2 * labels - 1",
        "labels",
        "tests/test_peers.py -k 'gives and sparsemax_loss and optax'",
    ),
    (
        _OPTAX,
        "peers: a public loss of optax without an answer",
        'names=("optax.losses.multiclass_perceptron_loss",),',
        'names=("optax.losses.perceptron",),',
        "tests/test_peers.py -k 'public_loss and optax'",
    ),
    (
        _OPTAX,
        "peers: an argument of optax that nothing is said of",
        "`epsilon` is a floor under squared lengths; none",
        "a floor under squared lengths; none",
        "tests/test_peers.py -k 'spoken and cosine_distance'",
    ),
    (
        _OPTAX,
        "peers: an option that the loss does not have",
        "gamma=gamma, alpha=alpha, reduction",
        "gamma=gamma, balance=alpha, reduction",
        "tests/test_peers.py -k 'takes_these and sigmoid_focal and optax'",
    ),
    (
        _TORCH,
        "peers: CTC's mean is not divided by target lengths",
        "weights=1 / target_lengths.clip(1), ",
        "",
        "tests/test_peers.py -k 'gives and CTCLoss and drawn'",
    ),
    (
        _TORCH,
        "peers: KL's mean is per row",
        'jl.kl_divergence(input, target, reduction="sum") / input.size',
        'jl.kl_divergence(input, target, reduction="sum") / len(input)',
        "tests/test_peers.py -k 'gives and KLDivLoss and drawn'",
    ),
    (
        _TORCH,
        "peers: -100 counts",
        "jl.softmax_cross_entropy(input, target, axis=1, where=target != ignore_index, ",
        "jl.softmax_cross_entropy(input, target, axis=1, ",
        "tests/test_peers.py -k 'gives and CrossEntropyLoss and indices and drawn'",
    ),
    (
        _KERAS,
        "peers: percent are fractions",
        'factor="100 * "',
        'factor=""',
        "tests/test_peers.py -k 'gives and MeanAbsolutePercentage and drawn'",
    ),
    (
        _RAX,
        "peers: a mean over lists where rax has one over pairs",
        '"valid=where, weights=(labels[..., :, None] > labels[..., None, :]).sum((-2, -1))"',
        '"valid=where"',
        "tests/test_peers.py -k 'gives and pairwise_hinge and drawn'",
    ),
    (
        _RLAX,
        "peers: the divergence the other way round",
        "jax.nn.log_softmax(q_logits / temperature), \"\n        'jax.nn.log_softmax(p_logits",
        "jax.nn.log_softmax(p_logits / temperature), \"\n        'jax.nn.log_softmax(q_logits",
        "tests/test_peers.py -k 'gives and categorical_kl and drawn'",
    ),
    (
        _JAXOPT,
        "peers: the label comes first here too",
        "jl.softmax_cross_entropy(logits, label,",
        "jl.softmax_cross_entropy(label, logits,",
        "tests/test_peers.py -k 'gives and multiclass_logistic and drawn'",
    ),
    (
        _CATALOGUE,
        "peers: a full name brings its likes along",
        "return exact or tuple(",
        "return tuple(",
        "tests/test_catalogue.py -k test_answers",
    ),
    (
        _CATALOGUE,
        "peers: names in tables find no loss",
        "for name in (*e.peers, *answered)]",
        "for name in e.peers]",
        "tests/test_catalogue.py -k found_by_the_names",
    ),
    (
        _CATALOGUE,
        "peers: any word will do after a known name",
        "all_of_them=bool(hits) and len(query.split()) == 1",
        "all_of_them=False",
        "tests/test_catalogue.py -k after_one_known",
    ),
    (
        _CATALOGUE,
        "peers: a drop-in of every name",
        "if module and last in importlib.import_module(module).__all__:",
        "if module:",
        "tests/test_catalogue.py -k drop_ins",
    ),
    (
        _APP,
        "peers: what is not built yet is an error",
        "if not found and not answers:",
        "if not found:",
        "tests/lab/test_lab_cli.py -k why_there_is_none",
    ),
]
