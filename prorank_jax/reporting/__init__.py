"""The parts of a report: what is read of a run folder, and what a page shows of it."""
