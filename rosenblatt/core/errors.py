"""The errors a user can meet: every message names what came, what was expected and how to cure it."""


class RosenblattError(Exception):
    """Base of every error this library raises on purpose."""


class DataError(RosenblattError, ValueError):
    """A table, row or file does not hold what was asked of it."""


class OptionError(RosenblattError, ValueError):
    """An option, argument or model name is unknown or out of range."""


class InverseError(RosenblattError, ArithmeticError):
    """An inverse did not converge; `rows` lists the flat indices of the batch rows concerned."""

    def __init__(self, reason: str, rows: list[int]) -> None:
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        super().__init__(
            f"inverse: {len(rows)} rows {reason} (rows {shown}); the map is too steep or too flat there, "
            "so check the requested points and the weights, or use float64."
        )
        self.reason = reason
        self.rows = rows


class CheckpointError(RosenblattError):
    """A run folder is missing, damaged, foreign or cannot be written."""


class FitDiverged(RosenblattError, ArithmeticError):
    """Training left the finite numbers and could not be brought back."""


class ProcessLost(RosenblattError, RuntimeError):
    """Another process of a fit on several failed or did not answer in time."""
