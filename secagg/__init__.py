"""Secure aggregation: a server learns the sum of its clients' vectors, and no vector.

NumPy integers and bytes in, bytes out; no input or output of its own. `open_client` and
`open_server` make sessions; the caller carries bytes between them. `docs/secagg.md` says what is
promised to whom.
"""

from secagg.aggregate import Aggregate, Transcript
from secagg.api import (
    ClientSession,
    InputWanted,
    Reply,
    Requests,
    RestartableServer,
    ServerSession,
)
from secagg.ckks_key_server import KeyEpoch, KeySetupServer
from secagg.ckks_presets import SharedKey
from secagg.errors import (
    AuthenticationError,
    ConfigurationError,
    InputError,
    MessageError,
    NonFiniteInput,
    PolicyViolation,
    ProtocolError,
    RoundAborted,
    SecAggError,
    StateError,
)
from secagg.fixedpoint import Update
from secagg.inprocess import run_key_setup, run_round
from secagg.keys import SignatureCache, SigningKey
from secagg.layout import CountSegment, FixedSegment, Layout, Segment
from secagg.params import KeyedParams, Mode, RoundParams, Stage, new_run_id
from secagg.policy import Policy
from secagg.roster import Identity, Member, Roster
from secagg.sessions import (
    marks_of,
    open_client,
    open_key_setup,
    open_restartable_server,
    open_server,
    restore_server,
)
from secagg.statements import statement
from secagg.threshold import default_colluders, guaranteed_honest, threshold

__all__ = [
    "Aggregate",
    "AuthenticationError",
    "ClientSession",
    "ConfigurationError",
    "CountSegment",
    "FixedSegment",
    "Identity",
    "InputError",
    "InputWanted",
    "KeyEpoch",
    "KeySetupServer",
    "KeyedParams",
    "Layout",
    "Member",
    "MessageError",
    "Mode",
    "NonFiniteInput",
    "Policy",
    "PolicyViolation",
    "ProtocolError",
    "Reply",
    "Requests",
    "RestartableServer",
    "Roster",
    "RoundAborted",
    "RoundParams",
    "SecAggError",
    "Segment",
    "ServerSession",
    "SharedKey",
    "SignatureCache",
    "SigningKey",
    "Stage",
    "StateError",
    "Transcript",
    "Update",
    "default_colluders",
    "guaranteed_honest",
    "marks_of",
    "new_run_id",
    "open_client",
    "open_key_setup",
    "open_restartable_server",
    "open_server",
    "restore_server",
    "run_key_setup",
    "run_round",
    "statement",
    "threshold",
]
