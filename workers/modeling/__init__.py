"""Models and their weights: loading, the output layer, LoRA, sharding over ranks, export."""
