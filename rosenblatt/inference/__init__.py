"""Posteriors: from a log-density by variational inference, from a simulator by learned densities."""
