"""What can be verified of a finished run: its records here, its mechanism in `privacy.audit`."""
