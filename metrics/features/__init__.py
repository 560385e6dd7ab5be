"""What metrics look at images through: feature networks, how images are prepared for each, and published statistics of features."""
