"""What tells a network a picture: encoders, control branches and adapters beside it, each the identity at the start."""
