"""The certificate of a solver: what it claims, measured by closed forms, published outputs and other schedulers."""
