"""Privacy-hardened federated multi-label prompt tuning of vision-language models."""
