"""Judging: prediction tables in; metrics with intervals, plots and a report out. It knows no model."""
