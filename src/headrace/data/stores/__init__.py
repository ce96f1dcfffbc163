"""Where bytes lie: files on this machine, objects in stores, files of web servers."""
