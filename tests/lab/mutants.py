"""Single defects, planted on purpose: each must be caught by the test beside it.

An entry: file, what is broken, the text (once in the file), the defect in its place, arguments for pytest.
"""

_APP, _COMPARE, _CONTENDERS, _DATA, _FILES, _LEADERBOARD, _METRICS, _PROGRAM, _TRAINING, _WORDING = (
    f"jaxloss/lab/{name}.py"
    for name in (
        "app",
        "compare",
        "contenders",
        "data",
        "files",
        "leaderboard",
        "metrics",
        "program",
        "training",
        "wording",
    )
)

MUTANTS = [
    (
        _DATA,
        "standardised by the test rows too",
        "    mean, scale = _moments(train.x)",
        "    mean, scale = _moments(np.concatenate([train.x, test.x]))",
        "tests/lab/test_lab_data.py -k training_rows_alone",
    ),
    (
        _DATA,
        "the split does not look at the classes",
        'by = y if task == "classification" else None',
        "by = None",
        "tests/lab/test_lab_data.py -k classes_in_proportion",
    ),
    (
        _DATA,
        "every epoch has the same order",
        "jax.random.fold_in(key, epoch)",
        "key",
        "tests/lab/test_lab_data.py -k others_the_next_time",
    ),
    (
        _CONTENDERS,
        "sigmoids normalised by a softmax of the scores",
        "jax.nn.softmax(jax.nn.log_sigmoid(scores))",
        "jax.nn.softmax(scores)",
        "tests/lab/test_lab_contenders.py -k class_probabilities",
    ),
    (
        _CONTENDERS,
        "entmax predicts with the default alpha whatever it was trained with",
        'options.get("alpha", 1.5), -1)',
        "1.5, -1)",
        "tests/lab/test_lab_contenders.py -k class_probabilities",
    ),
    (
        _CONTENDERS,
        "options are printed but do not train",
        "*self.recipe.feed.arguments(scores, y), **self.options, reduction",
        "*self.recipe.feed.arguments(scores, y), reduction",
        "tests/lab/test_lab_contenders.py -k options_reach",
    ),
    (
        _METRICS,
        "a confidence on the edge falls into the bin above",
        "inner, right=True)",
        "inner)",
        "tests/lab/test_lab_metrics.py -k edges_of_bins",
    ),
    (
        _METRICS,
        "calibration error divides by the bins",
        ".sum() / len(confidence))",
        ".sum() / bins)",
        "tests/lab/test_lab_metrics.py -k naive_loop",
    ),
    (
        _TRAINING,
        "every seed starts from the same params",
        "lambda key: self.model.init(key, example)",
        "lambda key: self.model.init(self._keys[0], example)",
        "tests/lab/test_lab_compare.py -k plain_loop",
    ),
    (
        _TRAINING,
        "the learning rate is lost",
        "optimizer.make(rate), nonfinite",
        "optimizer.make(1e-2), nonfinite",
        "tests/lab/test_lab_compare.py -k by_learning_rate",
    ),
    (
        _TRAINING,
        "every epoch deals the first epoch's batches",
        "epoch_order(key, number,",
        "epoch_order(key, 0 * number,",
        "tests/lab/test_lab_compare.py -k plain_loop",
    ),
    (
        _TRAINING,
        "a run fails by its predictions only",
        "seen = (self.training_loss, self.validation_predictions, self.test_predictions)",
        "seen = (self.validation_predictions, self.test_predictions)",
        "tests/lab/test_lab_compare.py -k failed_run",
    ),
    (
        _COMPARE,
        "the test rows choose the learning rate",
        "zip(runs.failed, runs.validation_predictions, strict=True)",
        "zip(runs.failed, runs.test_predictions[:, :, : len(data.validation)], strict=True)",
        "tests/lab/test_lab_compare.py -k test_rows_do_not",
    ),
    (
        _COMPARE,
        "a learning rate at which only some seeds diverged may win",
        "if not failed[:, i].any()]",
        "if not failed[:, i].all()]",
        "tests/lab/test_lab_compare.py -k diverged_seed_is_out",
    ),
    (
        _COMPARE,
        "equals are decided by rounding",
        "(-1 if metric.higher_is_better else 1), 12)",
        "(-1 if metric.higher_is_better else 1), 18)",
        "tests/lab/test_lab_compare.py -k equal_accuracies",
    ),
    (
        _COMPARE,
        "the interval is that of one difference, not of their mean",
        "differences.std(ddof=1)) / n**0.5",
        "differences.std(ddof=1))",
        "tests/lab/test_lab_compare.py -k paired_t",
    ),
    (
        _WORDING,
        "a loss to the second is called a lead of the first",
        "(difference.mean > 0) == metric.higher_is_better",
        "metric.higher_is_better",
        "tests/lab/test_lab_compare.py -k second_in_words",
    ),
    (
        _LEADERBOARD,
        "a narrow terminal gets the wide table",
        "console.options.update(width=1000), wide",
        "console.options, wide",
        "tests/lab/test_lab_compare.py -k any_width",
    ),
    (
        _PROGRAM,
        "the program trains with another seed's order",
        "epochs={epochs}, seed=0",
        "epochs={epochs}, seed=1",
        "tests/lab/test_lab_compare.py -k winner_again",
    ),
    (
        _FILES,
        "the spread is that of the population",
        "of_seeds.std(ddof=1)",
        "of_seeds.std()",
        "tests/lab/test_lab_compare.py -k test_the_files",
    ),
    (
        _APP,
        "a refusal is a success",
        "raise typer.Exit(2)",
        "raise typer.Exit(0)",
        "tests/lab/test_lab_cli.py -k refuses",
    ),
    (
        "jaxloss/cli.py",
        "any missing module is blamed on the extra",
        "        if missing not in _LAB:\n            raise\n",
        "",
        "tests/lab/test_lab_cli.py -k another_missing",
    ),
]
