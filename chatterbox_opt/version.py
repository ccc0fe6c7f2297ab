"""The package's version.

Responsible for this number, which pyproject.toml has too. Imports nothing, so that every module may
import it.
"""

__version__ = "0.1.0"
