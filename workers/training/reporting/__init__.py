"""What a step says of itself: its metrics and where its time went."""
