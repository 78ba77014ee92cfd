"""Programs around the project: the demonstration, the benchmarks and the generated docs."""
