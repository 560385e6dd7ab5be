"""Studies: measurements that are no table of cells. A suite with `study: NAME` in place of blocks is run by the module of that name."""
