import pickle

import pytest

from secagg.secret import Secret


def test_a_secret_prints_only_its_type_and_does_not_pickle():
    secret = Secret(b"do not print me")
    assert repr(secret) == str(secret) == "Secret"
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def test_an_erased_secret_holds_nothing():
    secret = Secret(b"soon gone")
    assert secret.reveal() == b"soon gone"
    secret.erase()
    assert secret.reveal() == b""
