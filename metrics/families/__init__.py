"""The metrics themselves, one module for each family; what they share lies beside this folder."""
