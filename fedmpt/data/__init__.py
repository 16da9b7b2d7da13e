"""Data sets, partitions over clients and the bank of frozen patch features."""
