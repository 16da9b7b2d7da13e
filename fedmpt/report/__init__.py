"""A finished run as one HTML file that opens anywhere: no network, no script, nothing beside it."""
