"""The federated loop and what it needs: prepared data, clients, aggregation and evaluation."""
