"""The process: distributed groups, threads, memory, paths, seeds and errors."""
