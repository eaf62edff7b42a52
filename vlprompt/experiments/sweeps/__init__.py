"""Many runs by one command: what they are, where they lie, and who makes them."""
