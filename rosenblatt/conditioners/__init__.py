"""Networks that emit the parameters of elementwise maps, in a declared order."""
