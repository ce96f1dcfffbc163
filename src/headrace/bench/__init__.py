"""The measurements behind the README's figures: ``headrace bench``.

Each bench is a module with one function, ``measure(size, say)``, that returns a
:class:`~headrace.bench.harness.Report`.
"""
