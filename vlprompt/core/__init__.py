"""Values and contracts: what flows between data, methods and towers."""
