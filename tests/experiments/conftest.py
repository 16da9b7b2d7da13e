"""Small runs, as the tests of the product have them."""

from tests.fedmpt.conftest import shared_cache, shared_checkpoint, small_run

__all__ = ["shared_cache", "shared_checkpoint", "small_run"]
