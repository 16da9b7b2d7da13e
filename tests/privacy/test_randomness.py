import pickle

import numpy as np
import pytest

from privacy.randomness import ByteSource, InsecureSeededBytes, SystemBytes


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 100_000])
def test_a_draw_has_the_size_asked_for(size: int) -> None:
    for source in (SystemBytes(), InsecureSeededBytes(insecure_seed=1, purpose="noise")):
        assert len(source.read(size)) == size


def test_no_two_draws_of_the_system_share_a_byte_stream() -> None:
    first, second = SystemBytes(), SystemBytes()
    draws = {first.read(32), first.read(32), second.read(32), second.read(32)}
    assert len(draws) == 4


def test_a_secret_source_holds_nothing_that_could_be_stored() -> None:
    source = SystemBytes()
    source.read(1000)
    assert not vars(source)
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 (our own object)
    assert copy.read(32) != source.read(32)


def test_bytes_are_uniform() -> None:
    counts = np.bincount(np.frombuffer(SystemBytes().read(1 << 20), dtype=np.uint8), minlength=256)
    expected = (1 << 20) / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 150 < chi_square < 390  # 255 degrees of freedom, level 1e-7 on either side


def test_seeded_bytes_repeat_and_differ_by_seed_purpose_and_draw() -> None:
    def read(seed: int, purpose: str, draws: int = 1) -> bytes:
        source: ByteSource = InsecureSeededBytes(insecure_seed=seed, purpose=purpose)
        return [source.read(32) for _ in range(draws)][-1]

    assert read(1, "noise") == read(1, "noise")
    different = {read(1, "noise"), read(2, "noise"), read(1, "sampling"), read(1, "noise", 2)}
    assert len(different) == 4


def test_only_the_system_is_secret() -> None:
    assert SystemBytes().is_secret
    assert not InsecureSeededBytes(insecure_seed=0, purpose="noise").is_secret


def test_a_draw_beyond_the_block_counter_is_refused() -> None:
    with pytest.raises(ValueError, match="one draw"):
        SystemBytes().read(1 << 37)
