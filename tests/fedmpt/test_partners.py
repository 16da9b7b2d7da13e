"""Company by site: it is what the settings say, changes nothing else, and never reaches the test split."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmpt.data.partition import partition
from fedmpt.data.partners import company_of, pairing
from fedmpt.data.scenes import CLASSES, SceneSettings, scene_recipe, scenes
from fedmpt.errors import UsageError

C = len(CLASSES)


@pytest.mark.parametrize("classes", [2, 4, 6, 20])
def test_every_two_classes_are_partners_in_exactly_one_pairing(classes: int) -> None:
    together = np.zeros((classes, classes), dtype=np.int64)
    for number in range(classes - 1):
        partners = pairing(number, classes)
        np.testing.assert_array_equal(partners[partners], np.arange(classes))
        together[np.arange(classes), partners] += 1
    np.testing.assert_array_equal(together, 1 - np.eye(classes, dtype=np.int64))


@pytest.mark.parametrize(("number", "classes"), [(0, 0), (0, 3), (-1, 20), (19, 20)])
def test_a_pairing_that_does_not_exist_is_refused(number: int, classes: int) -> None:
    with pytest.raises(UsageError, match="pairing"):
        pairing(number, classes)


@given(st.integers(0, C - 2), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_company_is_one_to_three_whole_pairs(number: int, seed: int) -> None:
    partners = pairing(number, C)
    found = company_of(partners, np.random.default_rng(seed))
    assert len(found) in (2, 4, 6)
    assert len(set(found)) == len(found)
    assert {int(partners[c]) for c in found} == set(found)


def test_without_company_the_data_are_what_they_were_before_there_was_any() -> None:
    found = scenes(train_size=40, test_size=20)
    state = hashlib.sha256()
    for split in (found.train, found.test):
        state.update(split.labels.tobytes())
        for content in split.content:  # digests of recipes and pictures
            state.update(content.encode())
    assert (
        state.hexdigest() == "e9776dfdfcc2c9b2d88b23223d5da2b799d786a90a04652d03b647c60c0971fd"
    )  # of the commit before
    other = scenes(train_size=40, test_size=20, sites=5, pairings=7)
    assert other.train.content == found.train.content


def test_company_never_reaches_the_test_split() -> None:
    plain = scenes(train_size=5, test_size=60)
    kept = scenes(train_size=5, test_size=60, company=1.0, pairings=3)
    assert kept.test.content == plain.test.content
    assert kept.train.content != plain.train.content
    assert kept.test.sites is None


@pytest.mark.parametrize("pairings", [1, 2, 12])
def test_under_full_company_no_object_is_without_its_sites_partner(pairings: int) -> None:
    train = scenes(train_size=240, test_size=1, company=1.0, pairings=pairings).train
    assert train.sites is not None
    np.testing.assert_array_equal(train.sites, np.arange(240) % 12)
    for labels, site in zip(train.labels, train.sites, strict=True):
        partners = pairing(int(site) % pairings, C)
        np.testing.assert_array_equal(labels[partners], labels)


def test_the_share_of_images_with_company_is_the_setting() -> None:
    def kept(company: float) -> NDArray[np.bool_]:
        labels = scenes(train_size=600, test_size=1, bias=0.0, company=company).train.labels
        partners = np.stack([pairing(i % 12 % 2, C) for i in range(600)])  # [n, C]
        return np.asarray((np.take_along_axis(labels, partners, axis=1) == labels).all(axis=1))

    by_chance = kept(0.0).mean()
    assert by_chance < 0.1
    assert abs(kept(0.5).mean() - (0.5 + 0.5 * by_chance)) < 0.08


def test_company_leaves_the_number_of_objects_and_the_frequency_of_classes_alone() -> None:
    plain, kept = (
        scenes(train_size=1200, test_size=1, bias=0.0, company=company).train.labels
        for company in (0.0, 1.0)
    )
    # 2.45 labels an image either way; standard errors of the means are 0.041 and 0.028
    assert abs(plain.sum(axis=1).mean() - kept.sum(axis=1).mean()) < 0.2
    # a class is in 12.25% of images; a standard error is 0.9%, and on each of 12 sites 3.3%
    assert np.abs(kept.mean(axis=0) - 0.1225).max() < 0.035
    for site in range(12):
        assert np.abs(kept[site::12].mean(axis=0) - 0.1225).max() < 0.15


def test_company_comes_before_context_and_has_any_background() -> None:
    settings = SceneSettings(train_size=200, test_size=1, bias=1.0, company=1.0)
    recipes = [scene_recipe(settings, "train", index) for index in range(200)]
    assert {recipe.context for recipe in recipes} == {-1}
    assert len({recipe.background for recipe in recipes}) == 12
    half = replace(settings, company=0.5)
    contexts = [scene_recipe(half, "train", index).context for index in range(200)]
    assert 60 < sum(context >= 0 for context in contexts) < 140


@pytest.mark.parametrize(
    ("name", "value"), [("company", 1.1), ("company", float("nan")), ("sites", 0), ("pairings", 20)]
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name}={value}"):
        scenes(**{name: value})  # type: ignore[arg-type]


def test_the_site_partition_gives_each_site_to_a_client() -> None:
    train = scenes(train_size=120, test_size=1).train
    found = partition(
        "site",
        features=None,
        labels=train.labels,
        sites=train.sites,
        clients=12,
        seed=0,
        minimum=10,
    )
    np.testing.assert_array_equal(found.assignment(), train.sites)
    some = train.take(np.arange(120) < 60, reason="cut")
    assert some.sites is not None
    np.testing.assert_array_equal(some.sites, np.arange(60) % 12)


@pytest.mark.parametrize(
    ("clients", "minimum", "message"),
    [(11, 10, "use --clients 12"), (12, 11, "clients.minimum_size=10")],
)
def test_the_site_partition_refuses_what_it_cannot_serve(
    clients: int, minimum: int, message: str
) -> None:
    train = scenes(train_size=120, test_size=1).train
    with pytest.raises(UsageError, match=message):
        partition(
            "site",
            features=None,
            labels=train.labels,
            sites=train.sites,
            clients=clients,
            seed=0,
            minimum=minimum,
        )


def test_data_without_sites_are_refused() -> None:
    labels = np.ones((40, 2), dtype=np.int8)
    with pytest.raises(UsageError, match="does not say where"):
        partition("site", features=None, labels=labels, clients=2, seed=0, minimum=10)
