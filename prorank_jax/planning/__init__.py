"""What a configuration needs of a TPU, found by compiling it: chips, compiled text, arithmetic, and the steps."""
