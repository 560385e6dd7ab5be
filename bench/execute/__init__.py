"""Who works through the jobs of a sweep, and how."""
