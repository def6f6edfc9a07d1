"""Tavern Proxy: front ends for role play talk to Claude through it."""

__version__ = "0.1.0"
