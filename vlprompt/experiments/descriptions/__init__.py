"""Class descriptions: a language model is asked for them, or chance writes them, into a file that methods read."""
