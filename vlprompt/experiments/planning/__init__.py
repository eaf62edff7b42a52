"""Plans of runs: what they take, measured on small ones beforehand."""
