"""The parts of an evaluation: candidates, reranking and its cost, measures, tests of differences, fusion, averages."""
