"""From rows of a JSONL file to token ids."""
