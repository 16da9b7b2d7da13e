"""Who can read what, in one sentence for each mode: what a run says of itself before it starts."""

from __future__ import annotations

from secagg.params import Mode

_STATEMENTS: dict[Mode, str] = {
    Mode.PLAIN: "NO SECURE AGGREGATION: the server sees every update.",
    Mode.MASKING: "Masking: the server learns the sum over the clients that finish and no single "
    "update, also if it lies and a minority of clients helps it.",
    Mode.CKKS: "CKKS: the server cannot read updates; all clients share one decryption key. The server "
    "together with any one client can read every update.",
}


def statement(mode: Mode, *, verify_sum: bool = False) -> str:
    """Who could read updates in a run of this mode, and what is assumed of the server.

    Args:
        mode: how updates are protected.
        verify_sum: for CKKS, whether decryptors add up all uploads themselves.
    """
    if mode is not Mode.CKKS:
        return _STATEMENTS[mode]
    if verify_sum:
        assumption = "Clients decrypt only a sum that they added up themselves."
    else:
        assumption = "The server is assumed to follow the protocol (unless --ckks-verify)."
    return f"{_STATEMENTS[mode]} {assumption}"
