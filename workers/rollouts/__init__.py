"""Rollout engines: prompts in, sampled answers out, all of it as token ids."""
