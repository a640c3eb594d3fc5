"""The version of Polyclinic that is installed: what server and sites compare before they work together."""

from importlib.metadata import version

VERSION = version("polyclinic")
