"""Tables of a paper: what they vary, the published figures, and both side by side. The tables are data, not code."""
