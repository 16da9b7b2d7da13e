"""The paper's Figure 1 made measurable: what tuning learns of the company that objects keep on clients.

``docs/bias.md`` says what is measured and how to read it.
"""
