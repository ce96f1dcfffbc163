"""Where bytes lie: files on this machine."""
