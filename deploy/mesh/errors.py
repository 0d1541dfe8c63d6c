"""The one way starting a mesh fails on purpose."""


class MeshError(Exception):
    """Something outside this program stands in the way; the message says what, and what to do."""
