"""The epochs of a loader: what is planned, in flight, counted and kept between them."""

from headrace.engine.epoch.auto import choose, trial_batches
from headrace.engine.epoch.options import Options
from headrace.engine.epoch.session import Session

__all__ = ["Options", "Session", "choose", "trial_batches"]
