"""The version of the driver, which is the version of the SQL that it carries."""

__version__ = "0.6.0"
