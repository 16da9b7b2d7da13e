import subprocess
import sys

import privacy


def test_every_exported_name_resolves_and_the_list_is_sorted() -> None:
    assert privacy.__all__ == sorted(privacy.__all__)
    for name in privacy.__all__:
        assert getattr(privacy, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(privacy, "PrivacyEngine")


def test_budget_ledger_and_events_import_neither_torch_nor_opacus_nor_dp_accounting() -> None:
    code = (
        "import sys, privacy, privacy.budget, privacy.ledger, privacy.events, privacy.sampling\n"
        "heavy = {'torch', 'opacus', 'dp_accounting', 'scipy'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
