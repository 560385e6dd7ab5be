"""From a table of coefficients to samples: plans, their lowering to launches, and the one loop that runs them."""
