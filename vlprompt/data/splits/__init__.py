"""Few-shot samples, streams, domains and hidden labels."""
