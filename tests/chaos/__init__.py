"""Kills pieces of a running mesh while streams run, then proves from journals what still held."""
