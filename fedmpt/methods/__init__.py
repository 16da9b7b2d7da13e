"""Methods of multi-label prompt tuning behind one protocol, and what they share."""
