"""What is said about rankings: measures by ranx, tests of differences between them, and fusion."""
