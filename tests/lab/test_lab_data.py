"""Data sets are whole, split by class, standardised by their training rows only, and dealt in a known order."""

import jax
import numpy as np
import pytest
import sklearn.datasets

from jaxloss.lab.data import DATASETS, epoch_order, load
from jaxloss.lab.naming import RequestError


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def whole(data):
    return (data.train, data.validation, data.test)


@pytest.mark.parametrize("name", DATASETS)
def test_the_three_parts_are_the_data_set(name):
    data, raw = load(name), getattr(sklearn.datasets, f"load_{name}")()
    sizes = [len(part) for part in whole(data)]
    assert sum(sizes) == len(raw.target)
    np.testing.assert_allclose(np.array(sizes) / sum(sizes), [0.6, 0.2, 0.2], atol=0.01)
    assert data.train.x.shape[1] == len(data.inputs) == raw.data.shape[1]
    y = np.concatenate([part.y for part in whole(data)]) * data.target_scale + data.target_mean
    np.testing.assert_allclose(np.sort(y), np.sort(raw.target), rtol=1e-6, atol=1e-4)


def test_no_row_is_in_two_parts(digits):
    rows = [{row.tobytes() for row in part.x} for part in whole(digits)]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


def test_every_part_has_the_classes_in_proportion(digits):
    shares = [np.bincount(part.y, minlength=10) / len(part) for part in whole(digits)]
    np.testing.assert_allclose(shares[1], shares[0], atol=0.005)
    np.testing.assert_allclose(shares[2], shares[0], atol=0.005)
    assert digits.outputs == len(digits.classes) == 10


def test_the_training_rows_alone_standardise(digits):
    x = digits.train.x.astype(np.float64)
    constant = x.std(axis=0) == 0
    assert constant.any()  # the corner pixels
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=0)[~constant], 1, rtol=1e-6)
    assert np.abs(digits.test.x.mean(axis=0)).max() > 0.01  # not its own mean
    assert digits.train.x.dtype == np.float32
    assert digits.train.y.dtype == np.int32


def test_the_targets_of_a_regression_are_standardised_too():
    data = load("diabetes")
    assert (data.outputs, data.classes) == (1, ())
    np.testing.assert_allclose([data.train.y.mean(), data.train.y.std()], [0, 1], atol=1e-6)


def test_the_split_is_everybodys():
    first, second = load("wine"), load("wine")
    np.testing.assert_array_equal(first.test.x, second.test.x)


def test_an_epoch_deals_rows_once_each_and_others_the_next_time():
    orders = [np.asarray(epoch_order(jax.random.key(0), epoch, 100, 32)) for epoch in range(2)]
    assert orders[0].shape == (3, 32)
    assert len(np.unique(orders[0])) == 96
    assert set(orders[0].ravel()) != set(orders[1].ravel())


def test_fewer_rows_than_a_batch_make_one_batch():
    assert sorted(np.asarray(epoch_order(jax.random.key(0), 0, 5, 32)).ravel()) == [0, 1, 2, 3, 4]


def test_batches_are_the_rows_in_that_order(digits):
    batches = list(digits.batches(epochs=2, seed=3, batch_size=500))
    assert len(batches) == 4
    order = np.asarray(epoch_order(jax.random.key(3), 1, len(digits.train), 500))
    np.testing.assert_array_equal(batches[3]["x"], digits.train.x[order[1]])
    np.testing.assert_array_equal(batches[3]["y"], digits.train.y[order[1]])


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(RequestError, match=r"no data set is named 'digit'; did you mean digits\?; known: digits, wine"):
        load("digit")
