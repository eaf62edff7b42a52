"""Language models of transformers as frozen towers; only here are they touched."""
