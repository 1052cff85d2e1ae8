"""The control worker's duties beside jobs: examinations, trials of graders, webhooks, pruning."""
