"""What is done ahead of the user's loop: gathering in a thread, copies to a device."""

from headrace.engine.ahead.gather_thread import AHEAD, GatherThread
from headrace.engine.ahead.pinning import pin_device, target_device
from headrace.engine.ahead.transfer import Transfer

__all__ = ["AHEAD", "GatherThread", "Transfer", "pin_device", "target_device"]
