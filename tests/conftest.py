"""What all tests share: the quiet fork of Python 3.11, in later versions too."""

import os
import sys
import warnings

if sys.version_info >= (3, 12):
    _fork = os.fork

    def _quiet_fork() -> int:
        """Fork without Python's warning of threads, of which a test runner always has some."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return _fork()

    os.fork = _quiet_fork
