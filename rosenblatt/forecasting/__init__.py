"""Forecasts that are distributions: joint paths of several series, rolling-origin evaluation and honest baselines."""

from rosenblatt.forecasting.backtest import Backtest
from rosenblatt.forecasting.baselines import Naive
from rosenblatt.forecasting.clock import Clock
from rosenblatt.forecasting.forecaster import Forecaster
from rosenblatt.forecasting.series import Series, read_series

__all__ = ["Backtest", "Clock", "Forecaster", "Naive", "Series", "read_series"]
