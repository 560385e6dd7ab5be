"""How the shipped networks were trained, on the same engine as the distillers."""
