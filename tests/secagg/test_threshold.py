import pytest

from secagg.errors import ConfigurationError
from secagg.threshold import default_colluders, guaranteed_honest, threshold

TABLE = {3: 2, 4: 3, 5: 4, 6: 4, 7: 5, 8: 6, 10: 7, 12: 8, 20: 14, 50: 34, 100: 67, 500: 334}


def conditions_hold(t: int, n: int, c: int) -> bool:
    one_survivor_list = 2 * t - n > c  # two sets of t share more than c clients
    closed_to_colluders = t > c
    two_honest_inputs = t - c >= 2
    return one_survivor_list and closed_to_colluders and two_honest_inputs


def test_the_threshold_is_the_least_that_meets_its_three_conditions():
    for n in range(1, 120):
        for c in range(n):
            t = threshold(n, c)
            assert conditions_hold(t, n, c)
            assert not conditions_hold(t - 1, n, c)


@pytest.mark.parametrize(("n", "t"), TABLE.items())
def test_default_thresholds_equal_the_published_table(n, t):
    assert threshold(n, default_colluders(n)) == t


def test_two_quorums_share_an_honest_client_whatever_the_server_chooses():
    for n in range(3, 60):
        for c in range(n):
            t = threshold(n, c)
            if t <= n:
                least_overlap = 2 * t - n
                assert least_overlap - c >= 1


def test_any_sum_holds_more_than_half_of_the_honest_clients():
    for n in range(3, 120):
        c = default_colluders(n)
        assert 2 * guaranteed_honest(n, c, 3) > n - c


@pytest.mark.parametrize(("n", "c"), [(0, 0), (3, -1)])
def test_impossible_numbers_are_refused(n, c):
    with pytest.raises(ConfigurationError):
        threshold(n, c)
