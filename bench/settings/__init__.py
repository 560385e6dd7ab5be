"""What a command is told: configuration files, and the key=value arguments over them."""
