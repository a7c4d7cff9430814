class Refused(Exception):
    """Something given from outside cannot be used. The message names what, where and the remedy."""
