"""From rows to tables, verdicts and pictures. Imports no torch."""
