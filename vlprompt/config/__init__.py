"""YAML to constructor arguments and back."""
