"""What is done ahead of the user's loop: gathering in a thread, copies to a device."""

from headrace.engine.ahead.gather_thread import AHEAD, GatherThread

__all__ = ["AHEAD", "GatherThread"]
