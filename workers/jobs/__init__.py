"""One job's attempt, from its claim to its outcome."""
