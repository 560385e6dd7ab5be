"""Networks of published checkpoints: written anew, with the names and shapes of their state dicts, so that those load strictly."""
