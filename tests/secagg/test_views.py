import pytest

from secagg.errors import Malformed, NonCanonical, UnknownIdentity, WrongStage
from secagg.messages import AdvertRow
from secagg.views import Cohort, ShareKind, Sharers, Survivors, known, share_kinds


@pytest.fixture(scope="module")
def cohort(federation):
    rows = [
        AdvertRow(i, bytes([i]) * 32, bytes([i + 1]) * 32, bytes(64)) for i in range(10, 60, 10)
    ]
    return Cohort.of(federation(5).params(), rows)


def survivors(sharers, ids):
    return Survivors.of(sharers.digest, [(i, b"h" * 32) for i in ids])


def test_each_holder_opens_exactly_one_share_of_each_neighbour_that_dealt(cohort):
    sharers = Sharers.of(cohort, (10, 20, 30, 40))
    kinds = share_kinds(cohort, sharers, survivors(sharers, (10, 20, 40)), 10)
    assert kinds == {20: ShareKind.SEED, 30: ShareKind.MASK_KEY, 40: ShareKind.SEED}


def test_holders_agree_on_the_kind_of_every_owner(cohort):
    sharers = Sharers.of(cohort, (10, 20, 30, 40))
    alive = survivors(sharers, (10, 20, 40))
    opened = [share_kinds(cohort, sharers, alive, holder) for holder in alive.ids]
    for owner in sharers.ids:
        assert len({kinds[owner] for kinds in opened if owner in kinds}) == 1


def test_points_are_ranks_in_the_cohort_and_never_zero(cohort):
    assert cohort.points == {10: 1, 20: 2, 30: 3, 40: 4, 50: 5}
    assert cohort.neighbours(30) == (10, 20, 40, 50)


def test_every_list_changes_its_digest(cohort, federation):
    lists = [Sharers.of(cohort, ids) for ids in ((10, 20, 30), (10, 20, 40), (10, 20, 30, 40))]
    assert len({sharers.digest for sharers in lists}) == 3
    views = [survivors(sharers, ids) for sharers in lists for ids in ((10, 20), (10, 20, 30))]
    assert len({view.digest for view in views}) == 6


@pytest.mark.parametrize(
    ("bitmap", "error"), [(b"", Malformed), (b"\x01\x00", Malformed), (b"\x20", NonCanonical)]
)
def test_a_bitmap_that_does_not_fit_the_cohort_is_refused(cohort, bitmap, error):
    with pytest.raises(error):
        Sharers.from_bitmap(cohort, bitmap)


def test_a_sharer_outside_the_cohort_is_refused(cohort):
    with pytest.raises(UnknownIdentity):
        Sharers.of(cohort, (10, 11))


def test_a_list_is_not_known_before_its_stage():
    with pytest.raises(WrongStage):
        known(None)
