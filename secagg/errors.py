# ruff: noqa: N818 - the names say what happened, "Error" would not add to it
"""Every error this package raises, and the one number each of them travels under.

```
SecAggError
├─ ConfigurationError    a public parameter cannot be accepted; nothing was sent
│  ├─ PolicyViolation        below a floor the client set for itself
│  ├─ RingTooSmall           the sum of so many values of that size could overflow
│  └─ UnsupportedSuite       primitives or mode this version does not speak
├─ InputError            the caller's update cannot be encoded; nothing was sent
│  ├─ NonFiniteInput         NaN or infinity
│  ├─ NoiseOutOfRange        integer noise above its public bound
│  └─ WrongLayout            missing, unknown or misshapen segment
├─ MessageError          bytes that are not a message of this protocol
│  ├─ Oversized, Malformed, NonCanonical, UnsupportedVersion
├─ AuthenticationError   a message whose author is not who it says
│  ├─ UnknownIdentity, BadSignature, BadSeal, BadAdvert, BadKey
├─ ProtocolError         a genuine message at the wrong place
│  ├─ WrongRound, WrongStage, ViewMismatch
│  └─ Latched                the one answer to this stage has been given
│     └─ Equivocation        and the coordinator signed two requests for it
├─ RoundAborted          this sequence ends without a sum
│  ├─ TooFewClients, TooFewSurvivors, TooFewReplies
│  ├─ ThinRing               enough in all, too few in some window of a sparse graph
│  ├─ ReconstructionFailed, SumOutOfRange
│  └─ AnswersDiffer, MarginExceeded
└─ StateError            a stored state that cannot be used
   ├─ CorruptState, StaleState, KeyMissing
```

Messages name stage, client, what was expected and what was found. They never hold a value of an
update, a key or a share.
"""

from __future__ import annotations


class SecAggError(Exception):
    """Base of all errors of this package.

    Attributes:
        refusal: the signed REFUSE message a client session made when it ended its round, for the
            transport to deliver; None where the round goes on or there was none.
    """

    refusal: bytes | None = None


class ConfigurationError(SecAggError):
    """A public parameter cannot be accepted."""


class PolicyViolation(ConfigurationError):
    """Round parameters fall below a floor of the client's own policy."""


class RingTooSmall(ConfigurationError):
    """A segment's sum cannot be proven to fit in 64 bits."""


class UnsupportedSuite(ConfigurationError):
    """The mode or the set of primitives is not implemented here."""


class InputError(SecAggError):
    """The caller's update cannot be encoded."""


class NonFiniteInput(InputError):
    """A fixed-point segment holds NaN or infinity."""


class NoiseOutOfRange(InputError):
    """Integer noise exceeds the public bound that the ring width was computed from."""


class WrongLayout(InputError):
    """Segments are missing, unknown, of the wrong shape or outside their declared bound."""


class MessageError(SecAggError):
    """Bytes that are not a well-formed message."""


class Oversized(MessageError):
    """More bytes than any honest message of this type has."""


class Malformed(MessageError):
    """Truncated, of the wrong length, or not decodable."""


class NonCanonical(MessageError):
    """Decodable, but not the one encoding of its content."""


class UnsupportedVersion(MessageError):
    """A wire version that this code does not know."""


class AuthenticationError(SecAggError):
    """A message that its alleged author did not make."""


class UnknownIdentity(AuthenticationError):
    """A client id that is not in the roster or was not invited."""


class BadSignature(AuthenticationError):
    """An Ed25519 signature does not verify."""


class BadSeal(AuthenticationError):
    """An authenticated ciphertext does not open."""


class BadAdvert(AuthenticationError):
    """A client advertised keys that cannot be used."""


class BadKey(AuthenticationError):
    """A shared CKKS key that its maker signed cannot be used."""


class ProtocolError(SecAggError):
    """A message that does not belong here."""


class WrongRound(ProtocolError):
    """A message of another round."""


class WrongStage(ProtocolError):
    """A message of another stage, or for a session that has ended."""


class ViewMismatch(ProtocolError):
    """What this client is shown differs from what it knows itself."""


class Latched(ProtocolError):
    """The one answer to this stage was already given; a second is refused."""


class Equivocation(Latched):
    """The coordinator signed two different requests for one stage.

    Attributes:
        evidence: the two signed requests, which prove it to anybody who holds the roster.
    """

    def __init__(self, message: str, evidence: tuple[bytes, bytes]) -> None:
        super().__init__(message)
        self.evidence = evidence


class RoundAborted(SecAggError):
    """The round ends without a sum."""


class TooFewClients(RoundAborted):
    """Fewer clients than the threshold or a floor before anything was uploaded."""


class TooFewSurvivors(RoundAborted):
    """Fewer uploads than the threshold or `survivors_min`."""


class ThinRing(RoundAborted):
    """Too few clients of a list in some window of the ring: a group could be cut off."""


class TooFewReplies(RoundAborted):
    """Fewer than the threshold confirmed or revealed."""


class ReconstructionFailed(RoundAborted):
    """A secret could not be rebuilt from the shares received.

    Attributes:
        dealer: the client whose secret it was.
    """

    def __init__(self, message: str, dealer: int) -> None:
        super().__init__(message)
        self.dealer = dealer


class SumOutOfRange(RoundAborted):
    """The decoded sum exceeds what honest clients can produce: somebody misbehaved."""


class AnswersDiffer(RoundAborted):
    """Two clients decrypted the same sum to different integers: one of them lies."""


class MarginExceeded(RoundAborted):
    """A decrypted sum does not lie on the grid: the run stops, and its key is not used again."""


class StateError(SecAggError):
    """A stored state that cannot be used."""


class CorruptState(StateError):
    """Stored bytes that do not decode."""


class StaleState(StateError):
    """A sequence at or below the stored mark."""


class KeyMissing(StateError):
    """This client does not hold the shared key that the round is bound to."""


_GENERIC_REFUSAL = 1

REFUSAL_CODES: dict[type[SecAggError], int] = {
    SecAggError: _GENERIC_REFUSAL,
    PolicyViolation: 2,
    RingTooSmall: 3,
    UnsupportedSuite: 4,
    UnknownIdentity: 5,
    BadSignature: 6,
    BadAdvert: 7,
    ViewMismatch: 8,
    Malformed: 9,
    NonCanonical: 10,
    TooFewClients: 11,
    TooFewSurvivors: 12,
    TooFewReplies: 13,
    StaleState: 14,
    Equivocation: 15,
    ThinRing: 16,
    BadKey: 32,
    BadSeal: 33,
    KeyMissing: 34,
    SumOutOfRange: 35,
    MarginExceeded: 36,
}

REFUSAL_NAMES: dict[int, str] = {code: kind.__name__ for kind, code in REFUSAL_CODES.items()}


def refusal_code(error: SecAggError) -> int:
    """The number under which `error` is reported to the server; no other detail travels."""
    return REFUSAL_CODES.get(type(error), _GENERIC_REFUSAL)
