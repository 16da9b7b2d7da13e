"""Checks of arguments that name the parameter, the value and the remedy."""

import math

from privacy.errors import ConfigurationError


def positive(**values: float) -> None:
    """Raises `ConfigurationError` unless every value is finite and above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigurationError(f"{name}={value!r}: must be finite and > 0")


def rate(**values: float) -> None:
    """Raises `ConfigurationError` unless every value lies in (0, 1]."""
    for name, value in values.items():
        if not 0 < value <= 1:
            raise ConfigurationError(f"{name}={value!r}: must lie in (0, 1]")


def count(**values: int) -> None:
    """Raises `ConfigurationError` unless every value is an integer of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{name}={value!r}: must be an integer >= 1")
