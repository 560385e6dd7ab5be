"""Files of others: what a suite needs of them, where they come from, and how they get here whole and verified."""
