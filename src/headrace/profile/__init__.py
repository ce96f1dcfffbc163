"""Where the time of an unmodified program goes: its loaders watched, and one verdict said.

Watch (:mod:`.watch`, :mod:`.seams`, :mod:`.stacks`) writes lines to a directory (:mod:`.log`), from
every process of the program; what they say is put together (:mod:`.gathered`), divided
(:mod:`.split`), explained (:mod:`.causes`) and told (:mod:`.report`).
"""

from headrace.profile.gathered import gather
from headrace.profile.report import lines, report
from headrace.profile.watch import Watch

__all__ = ["Watch", "gather", "lines", "report"]
