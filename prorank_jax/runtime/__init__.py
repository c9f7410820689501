"""What both stages stand on: devices, optimizer, checkpoints, metrics."""
