"""``python -m headrace.cli``: the ``headrace`` command where no script is installed."""

from headrace.cli import main

if __name__ == "__main__":
    main()
