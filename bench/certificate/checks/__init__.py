"""What a certificate asks of a solver, one question a file."""
