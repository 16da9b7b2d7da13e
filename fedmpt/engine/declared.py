"""How many images clients say they hold: what everything public is derived from under privacy."""

from __future__ import annotations

from fedmpt.config import Config
from fedmpt.data.partition import Partition
from fedmpt.errors import UsageError
from privacy import ConfigurationError, public_size


def public_sizes(config: Config, partition: Partition) -> list[int]:
    """Return each client's declared size ``n_public``: as configured, else its true size rounded down to tens.

    Raises:
        UsageError: another number of sizes is configured than there are clients, or a client holds too little.
    """
    clients, declared = partition.clients, config.privacy.declared_sizes
    if declared is None:
        sizes = []
        for client, rows in enumerate(clients):
            try:
                sizes.append(public_size(len(rows)))
            except ConfigurationError as error:
                raise UsageError(
                    f"client {client} holds {len(rows)} image(s): {error}; use fewer --clients, a larger "
                    "clients.minimum_size, or privacy.declared_sizes"
                ) from error
        return sizes
    if len(declared) != len(clients):
        raise UsageError(
            f"privacy.declared_sizes: {len(declared)} sizes for {len(clients)} clients; give each client's, in order"
        )
    return list(declared)
