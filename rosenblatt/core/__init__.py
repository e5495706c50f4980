"""The floor everything stands on: transforms, densities, roots, registry and errors."""
