"""What is fitted before a cell can be sampled: teachers, students, learned solvers, and pairs."""
