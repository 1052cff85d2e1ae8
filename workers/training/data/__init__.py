"""What an update works on: samples in packed rows of tokens."""
