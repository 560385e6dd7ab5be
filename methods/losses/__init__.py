"""Loss atoms that methods share."""
